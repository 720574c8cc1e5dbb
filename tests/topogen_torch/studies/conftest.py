"""The toy study lies beside the tests and is imported by its name, here and in processes of their own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
