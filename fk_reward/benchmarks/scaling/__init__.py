"""Quality against cost: searches at several budgets, with the curve of best of N."""
