"""What a tool needs beyond a timm model's name; one file per tool, imported by its own name.

docs/integrations.md shows these and the tools that need nothing.
"""
