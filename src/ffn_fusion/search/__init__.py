"""The search: one choice for every sub-block, the least summed score within any budgets. No torch."""
