"""The newest-frame mailbox: a slow consumer gets the newest item of each camera, and knows how many it missed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar('Item')


@dataclass
class _Slot(Generic[Item]):
    item: Item | None = None
    replaced: int = 0     # items that a newer one replaced, or that never came this far, since the last take


class Mailbox(Generic[Item]):
    """One slot for each camera. A slot holds one item, which a newer item replaces. Cameras take turns."""

    def __init__(self, slots: int = 1) -> None:
        self._changed = threading.Condition()
        self._slots = [_Slot() for _ in range(slots)]
        self._served = slots - 1
        self._closed = False

    def put(self, slot: int, item: Item, missed: int = 0) -> None:
        """Leave the item for the consumer. Never wait. After :meth:`close` the item is ignored.

        ``missed`` items before it did not come this far; they count as replaced.
        """
        with self._changed:
            if self._closed:
                return
            box = self._slots[slot]
            box.replaced += missed + (box.item is not None)
            box.item = item
            self._changed.notify()

    def take(self) -> tuple[int, Item, int] | None:
        """Wait for an item. Return slot, item and the number of items replaced there since its last take.

        Of the slots that hold one it is the next after the slot served last. None after close.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or any(box.item is not None for box in self._slots))
            if self._closed:
                return None
            count = len(self._slots)
            turns = ((self._served + 1 + step) % count for step in range(count))
            self._served = next(slot for slot in turns if self._slots[slot].item is not None)
            box = self._slots[self._served]
            self._slots[self._served] = _Slot()
            return self._served, box.item, box.replaced

    def close(self) -> list[int]:
        """End every take, now and later. Return, slot by slot, how many items were never taken."""
        with self._changed:
            left = [box.replaced + (box.item is not None) for box in self._slots]
            self._closed, self._slots = True, [_Slot() for _ in self._slots]
            self._changed.notify_all()
        return left


class Worker(Mailbox[Item]):
    """A mailbox with its consumer: one thread that handles the newest items, until :meth:`stop`."""

    def __init__(self, handle: Callable[[int, Item, int], None], name: str, slots: int = 1) -> None:
        """Start the thread. ``handle(slot, item, replaced)`` runs in it, one call at a time, and does not raise."""
        super().__init__(slots)
        self._handle = handle
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> list[int]:
        """Let the call in progress finish and end the thread. Return, slot by slot, the items never handled."""
        left = self.close()
        self._thread.join()
        return left

    def _run(self) -> None:
        while (taken := self.take()) is not None:
            self._handle(*taken)
