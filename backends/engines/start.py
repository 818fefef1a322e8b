"""Starts the server of one engine: `PYTHON start.py ENGINE JSON`, in an interpreter that need not know this project.

The interpreter needs the engine and numpy. It finds the two packages below by their place and nothing else of what
lies around them: neither this project's dependencies nor, under a name like `hf`, a file beside this one.
"""

import importlib
import sys
import types
from pathlib import Path


def main(engine: str, settings: str) -> int:
    """Answer requests on stdin until it ends.

    Args:
        engine: "official", "llama_cpp", "hf".
        settings: a JSON object for the engine.
    """
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    for name, folder in (("backends", here.parent), ("backends.engines", here)):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    serve = importlib.import_module("backends.engines.serve")
    return int(serve.serve(f"backends.engines.serve_{engine}", settings))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
