"""Puzzle (arXiv 2411.19146): a library of cheaper sub-blocks, made, solved, trained locally, scored and costed."""
