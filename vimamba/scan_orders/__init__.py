"""Scan orders: rules that turn a grid of tokens into sequences.

A scan order maps a grid, that of an image, a volume or a video, to K *paths*. A path lists raster
indices (row * width + column) in the order in which the state space model visits them; -1 is a zero
token for padding. Together the paths of one order visit every cell equally often. To add an order,
write a function in `orders.py` (or in your own code) and decorate it; nothing else needs to change.
Its parameters without a default are the axes of the grid, the others are options:

    @register_scan_order
    def upwards(height: int, width: int) -> Tensor:
        return torch.arange(height * width).view(height, width).flip(0).reshape(1, -1)

Wherever a model takes `scan_order`, it takes the name of an order with or without parameters, or a
sum of orders: "cross", "local(window=7)", "raster + raster(reverse=True) + interslice". Blocks take
the entries of a list in turn. `registry.py` holds the names, the checks and the tables, `op.py` the
op, `orders.py` the orders themselves.
"""

from vimamba.scan_orders import orders  # noqa: F401  registers the orders
from vimamba.scan_orders.op import grid_of
from vimamba.scan_orders.registry import (
    ScanOrder,
    get_scan_order,
    list_scan_orders,
    num_paths,
    order_of_block,
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
    "order_of_block",
    "path_function",
    "register_scan_order",
    "register_scan_table",
    "scan_paths",
    "shared_paths",
    "visits_all_cells",
]
