"""What a tool needs beyond a timm model's name; one module per tool, imported by its own name.

docs/integrations.md and docs/nnunet.md show these, and the tools that need nothing.
"""
