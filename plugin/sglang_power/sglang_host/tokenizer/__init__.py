"""The tokenizer process: what was asked, the life of a request, its children, its answers.

Must not import `scheduler` or `experiments`.
"""
