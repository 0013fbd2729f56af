"""How much of the memory that a block makes is there at once, and how much is still there after it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class MadeMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the memory of every tensor that is made inside.

    Attributes:
        peak: Most bytes that were there at once, what operators need for themselves not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]
        self.peak = max(self.peak, self.bytes_alive())
        return made

    def bytes_alive(self) -> int:
        """Bytes of what somebody still holds."""
        alive = {key: made for key, made in self._storages.items() if not made[0].expired()}
        self._storages = alive
        return sum(count for _, count in alive.values())
