"""Adapters for tools that need more than a timm model's name; one module per tool.

docs/integrations.md and docs/nnunet.md show these, and the tools that need no adapter.
"""
