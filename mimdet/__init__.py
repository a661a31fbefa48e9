__version__ = "0.1.0"

from .base.front import __dir__, __getattr__
