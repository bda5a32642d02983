"""Reading ahead: a thread reads the next items while the model looks at the last."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar


Item = TypeVar("Item")
Content = TypeVar("Content")


def read_ahead(
    read: Callable[[Item], Content], items: Iterable[Item], count: int
) -> Iterator[tuple[Item, "Future[Content]"]]:
    """Each item with the future of `read(item)`, whose `result()` returns what `read` does, or raises its error.

    A thread calls `read` for up to `count` items that are still to come.

    Example:

    ```python
    >>> for path, image in read_ahead(decode_pil_image, paths, count=2):
    ...     print(path, image.result().size)
    ```
    """
    orders: queue.SimpleQueue[tuple[Item, Future[Content]] | None] = queue.SimpleQueue()

    def work() -> None:
        while (order := orders.get()) is not None:
            item, future = order
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(read(item))
                except BaseException as error:
                    future.set_exception(error)

    # a daemon: a URL that does not answer must not keep the program from ending
    threading.Thread(target=work, name="querypose-reading", daemon=True).start()
    waiting: deque[tuple[Item, Future[Content]]] = deque()
    try:
        for item in items:
            waiting.append((item, Future()))
            orders.put(waiting[-1])
            if len(waiting) > count:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for _, future in waiting:
            future.cancel()
        orders.put(None)
