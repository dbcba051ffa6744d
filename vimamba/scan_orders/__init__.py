"""Scan orders: the rules that turn an image grid into sequences.

A scan order maps a grid to K *paths*. A path lists raster indices (row * width + column) in the
order in which the state space visits them; -1 is a zero token, which pads a path. Together the
paths of one order visit every cell equally often. To add an order, write a function in `orders.py`
(or in your own code) and decorate it; nothing else needs to change:

    @register_scan_order
    def columns(height: int, width: int) -> Tensor:
        return torch.arange(height * width).view(height, width).T.reshape(1, -1)

Everywhere a model takes `scan_order`, it takes the name of an order, with or without parameters:
"cross", "local(window=7)". `registry.py` holds the names, the checks and the op, `orders.py` the
orders themselves.
"""

from vimamba.scan_orders import orders  # noqa: F401  registers the orders
from vimamba.scan_orders.registry import (
    ScanOrder,
    get_scan_order,
    grid_of,
    list_scan_orders,
    num_paths,
    path_function,
    register_scan_order,
    register_scan_table,
    scan_paths,
    shared_paths,
    visits_all_cells,
)

__all__ = [
    "ScanOrder",
    "get_scan_order",
    "grid_of",
    "list_scan_orders",
    "num_paths",
    "path_function",
    "register_scan_order",
    "register_scan_table",
    "scan_paths",
    "shared_paths",
    "visits_all_cells",
]
