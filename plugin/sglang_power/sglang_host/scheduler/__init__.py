"""The scheduler process: which rows are the plugin's, how their tokens are drawn, what they report.

Must not import `tokenizer` or `experiments`.
"""
