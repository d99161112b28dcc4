"""Instruments that only benchmarks use: fitting a machine's constants, and timing models split over processes."""
