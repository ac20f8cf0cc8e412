import functools
import pkgutil
from enum import Enum


class HookType(Enum):
    BEFORE = "before"
    AFTER = "after"


class HookRegistry:
    _hooks = []

    @classmethod
    def register(cls, target, hook, hook_type=HookType.AFTER, *, source=None):
        cls._hooks.append((target, hook, hook_type))

    @classmethod
    def apply_hooks(cls):
        for target, hook, hook_type in cls._hooks:
            assert hook_type is HookType.AFTER
            place, name = target.rsplit(".", 1)
            place = pkgutil.resolve_name(place)
            setattr(place, name, _after(getattr(place, name), hook))
        cls._hooks.clear()


def _after(original, hook):
    @functools.wraps(original)
    def wrapper(*args, **kwargs):
        result = original(*args, **kwargs)
        modified = hook(result, *args, **kwargs)
        return modified if modified is not None else result

    return wrapper
