"""From a checkpoint to a compressed model: statistics, budgets, healing, and where the work runs."""
