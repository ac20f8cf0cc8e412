from types import SimpleNamespace

RANK = 0


def get_ep_group():
    return SimpleNamespace(device_group=SimpleNamespace(rank=lambda: RANK))
