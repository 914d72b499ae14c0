"""From a validated request to an answer: presets, budgets, the chain driver, the response's numbers."""
