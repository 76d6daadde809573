from .base import Method as Method
from .registry import METHODS as METHODS
from .registry import register as register
