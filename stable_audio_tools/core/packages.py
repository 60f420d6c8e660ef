"""Optional packages, asked for where they are used."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from stable_audio_tools.core.errors import MissingPackage


def require(name: str, extra: str | None = None) -> ModuleType:
    """Import an optional package, or say how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        distribution = package.replace("_", "-")
        # The package of this name on the index is another one, so the extra is that of a clone.
        remedy = f"pip install -e '.[{extra}]' in the clone of this project" if extra else f"pip install {distribution}"
        missing = getattr(error, "name", None)
        if missing is not None and missing.split(".")[0] == package:
            raise MissingPackage(f"{distribution} is not installed; install it with: {remedy}") from None
        raise MissingPackage(f"{distribution} is installed but cannot be imported ({error}); try: {remedy}") from error


def available(name: str) -> bool:
    """Is the package installed? Does not import it."""
    return find_spec(name.split(".")[0]) is not None
