"""Vision-Mamba models as timm models, with pluggable scan orders."""

__version__ = "0.1.0"
