"""The newest-frame mailbox: a slow consumer always gets the newest item, and knows how many it missed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar('Item')


class Mailbox(Generic[Item]):
    """Holds at most one item; a newer one takes its place."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: Item | None = None
        self._replaced = 0
        self._closed = False

    def put(self, item: Item, missed: int = 0) -> None:
        """Leaves the item for the consumer. Never waits. Nothing happens after :meth:`close`.

        ``missed`` items before it did not come this far; they count as replaced.
        """
        with self._changed:
            if self._closed:
                return
            if self._item is not None:
                self._replaced += 1
            self._replaced += missed
            self._item = item
            self._changed.notify()

    def take(self) -> tuple[Item, int] | None:
        """Waits for an item; gives it with the number of items replaced since the last take, None after close."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._item is not None)
            if self._closed:
                return None
            item, replaced = self._item, self._replaced
            self._item, self._replaced = None, 0
            return item, replaced

    def close(self) -> None:
        """Ends every take, now and later; an item not yet taken is dropped."""
        with self._changed:
            self._closed, self._item = True, None
            self._changed.notify_all()


class Worker(Generic[Item]):
    """One thread that handles the newest item, until :meth:`stop`."""

    def __init__(self, handle: Callable[[Item, int], None], name: str) -> None:
        """``handle(item, replaced)`` runs in the thread, one call at a time, and does not raise."""
        self._handle = handle
        self._mailbox: Mailbox[Item] = Mailbox()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item, missed: int = 0) -> None:
        """Leaves an item for the thread; an older one that it has not begun is dropped. See :meth:`Mailbox.put`."""
        self._mailbox.put(item, missed)

    def stop(self) -> None:
        """Lets the call in progress finish and ends the thread."""
        self._mailbox.close()
        self._thread.join()

    def _run(self) -> None:
        while (taken := self._mailbox.take()) is not None:
            self._handle(*taken)
