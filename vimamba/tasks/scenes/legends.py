"""What the values of a map mean, in files beside it that other programs look for."""

from pathlib import Path
from xml.etree import ElementTree as ET

from vimamba.files import write_whole
from vimamba.tasks.scenes.maps import Legend

# what QGIS takes of a style: how a layer is drawn, and nothing else
SYMBOLOGY = {"version": "3.22", "styleCategories": "Symbology"}


def names_file(path: Path) -> Path:
    """Where GDAL and QGIS look for the class names of a GeoTIFF."""
    return path.with_name(f"{path.name}.aux.xml")


def style_file(path: Path) -> Path:
    """Where QGIS looks for the style of a layer that is opened."""
    return path.with_suffix(".qml")


def write_names(path: Path, legend: Legend) -> None:
    """Write the class names of a map as GDAL's category names, 0 and up.

    Args:
        path: The map.
        legend: What its values mean.
    """
    named = dict(zip(legend.values, legend.names, strict=True))
    root = ET.Element("PAMDataset")
    band = ET.SubElement(root, "PAMRasterBand", band="1")
    names = ET.SubElement(band, "CategoryNames")
    for value in range(max(legend.values) + 1):
        ET.SubElement(names, "Category").text = named.get(value, "")
    write_xml(root, names_file(path))


def write_style(path: Path, legend: Legend) -> None:
    """Write how QGIS draws a map: each class in its color, with its name in the layer's legend.

    Args:
        path: The map.
        legend: What its values mean.
    """
    root = ET.Element("qgis", SYMBOLOGY)
    renderer = ET.SubElement(
        ET.SubElement(root, "pipe"),
        "rasterrenderer",
        {"type": "paletted", "band": "1", "opacity": "1", "alphaBand": "-1"},
    )
    palette = ET.SubElement(renderer, "colorPalette")
    for name, value, color in zip(legend.names, legend.values, legend.colors, strict=True):
        red, green, blue = color
        entry = {"color": f"#{red:02x}{green:02x}{blue:02x}", "alpha": "255", "label": name}
        ET.SubElement(palette, "paletteEntry", {"value": str(value), **entry})
    write_xml(root, style_file(path))


def write_xml(root: ET.Element, path: Path) -> None:
    """Write a document, indented; GDAL reads none that begins with a declaration."""
    ET.indent(root)
    with write_whole(path) as part:
        ET.ElementTree(root).write(part, encoding="utf-8", xml_declaration=False)
