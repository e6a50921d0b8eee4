"""Neural architecture search on a budget: one graph type, edges are modules, a mask selects.

Layers, from the bottom: training, data, supernet, costs, spaces, search, audio, adaptive,
continual, viz, workbook. A layer imports only from those below it.
"""

__version__ = "0.1.0"
