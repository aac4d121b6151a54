"""The KV cache's memory: one budget for all models, in pages of a few tokens that texts with the same beginning share.

A page that is full is remembered by its tokens and all before them, and stays when its text has ended, as long as there
is room: what was not used for longest is forgotten first. A text that begins like another takes its pages instead of
reading them again. Since what a page holds is bitwise the same whoever reads it, so are the answers.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count

from compressor.runtime.kv import PAGE_TOKENS, Cache, pages_for
from compressor.runtime.model import Model
from service.settings import Settings

Key = tuple[int, bytes]  # the number of the page before, and the tokens of this one


class Pool:
    """Bytes that the pages of all models may occupy together.

    Attributes:
        size_bytes: how many there are.
        used_bytes: of pages that hold something.
        idle_bytes: of these, those that no text needs.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.used_bytes = self.idle_bytes = 0
        self._idle: OrderedDict[tuple[Pages, int], None] = OrderedDict()  # the one used last at the end

    @property
    def left_bytes(self) -> int:
        """Bytes that texts could have, if all was forgotten that they do not need."""
        return self.size_bytes - self.used_bytes + self.idle_bytes

    def rest(self, pages: "Pages", page: int) -> None:
        """No text needs a page any more."""
        self._idle[pages, page] = None
        self.idle_bytes += pages.cache.page_bytes

    def wake(self, pages: "Pages", page: int) -> None:
        """A text needs a page again, or it is forgotten."""
        del self._idle[pages, page]
        self.idle_bytes -= pages.cache.page_bytes

    def longest_idle(self) -> tuple["Pages", int]:
        """Return the page that was not used for longest, and whose it is."""
        return next(iter(self._idle))


class Pages:
    """Pages of one model's cache, given to its slots as their texts grow.

    Attributes:
        cache: whose pages they are.
        held: pages that texts need; one that several share counts once.
    """

    def __init__(self, cache: Cache, pool: Pool, *, shares: bool = True) -> None:
        """Give no page away yet.

        Args:
            cache: made with pages that belong to nobody.
            pool: that they count against.
            shares: whether texts share pages, and these are remembered.
        """
        self.cache = cache
        self.held = 0
        self._pool = pool
        self._shares = shares
        self._free = list(range(cache.pages))  # a heap
        self._users = array("i", [0]) * cache.pages
        self._keys: dict[int, Key] = {}  # of the pages that are remembered
        self._known: dict[Key, tuple[int, int]] = {}  # page and its number
        self._numbers = count(1)
        self._counts = [0] * cache.slots  # pages of each slot
        self._chains: list[list[int]] = [[] for _ in range(cache.slots)]  # numbers of its full pages

    @property
    def held_bytes(self) -> int:
        """Bytes of these."""
        return self.held * self.cache.page_bytes

    def extend(self, slot: int, tokens: int, spare: int = 0) -> bool:
        """Give a slot pages for `tokens` tokens; return whether there were as many, and `spare` ones besides."""
        more = pages_for(tokens) - self._counts[slot]
        if more <= 0:
            return True
        if (more + spare) * self.cache.page_bytes > self._pool.left_bytes:
            return False
        for _ in range(more):
            self._put(slot, self._counts[slot], self._take())
            self._counts[slot] += 1
        return True

    def match(self, slot: int, ids: Sequence[int]) -> int:
        """Have a slot go on with pages that others have read, as far as these are its text; return how many tokens.

        Args:
            slot: that has read full pages so far.
            ids: its text, of which at least the last token is left to be read.
        """
        chain, read = self._chains[slot], int(self.cache.lengths[slot])
        start = read
        while self._shares and read == len(chain) * PAGE_TOKENS and read + PAGE_TOKENS < len(ids):
            found = self._known.get(_key(chain, ids))
            if found is None:
                break
            self._replace(slot, len(chain), found[0])
            chain.append(found[1])
            read += PAGE_TOKENS
        self.cache.lengths[slot] = read
        return read - start

    def remember(self, slot: int, ids: Sequence[int]) -> None:
        """Remember the pages that a slot has filled with its text; of two that are the same only one is kept."""
        chain, full = self._chains[slot], int(self.cache.lengths[slot]) // PAGE_TOKENS
        while self._shares and len(chain) < full:
            block, key = len(chain), _key(chain, ids)
            if key in self._known:
                self._replace(slot, block, self._known[key][0])
            else:
                page = int(self.cache.table[slot, block])
                self._known[key], self._keys[page] = (page, next(self._numbers)), key
            chain.append(self._known[key][1])

    def release(self, slot: int) -> None:
        """Empty a slot."""
        for block in reversed(range(self._counts[slot])):  # so that what others may need is forgotten last
            self._drop(int(self.cache.table[slot, block]))
        self.cache.table[slot] = -1
        self.cache.lengths[slot] = 0
        self._counts[slot] = 0
        self._chains[slot].clear()

    def _replace(self, slot: int, block: int, page: int) -> None:
        """Let a slot use a remembered page, in the place of its own if it has one there."""
        if not self._users[page]:
            self._pool.wake(self, page)
        own = int(self.cache.table[slot, block])
        self._put(slot, block, page)
        if own >= 0:
            self._drop(own)
        else:
            self._counts[slot] += 1

    def _put(self, slot: int, block: int, page: int) -> None:
        self.held += not self._users[page]
        self._users[page] += 1
        self.cache.table[slot, block] = page

    def _drop(self, page: int) -> None:
        self._users[page] -= 1
        if self._users[page]:
            return
        self.held -= 1
        if page in self._keys:
            self._pool.rest(self, page)
        else:
            self._give_back(page)

    def _take(self) -> int:
        """Return a page that holds nothing, forgetting others if there is no room otherwise."""
        pool, size = self._pool, self.cache.page_bytes
        while pool.used_bytes + size > pool.size_bytes:
            pages, page = pool.longest_idle()
            pages._forget(page)
            if pages is self:  # its memory is used again
                return page
            pages._give_back(page)
        pool.used_bytes += size
        return heappop(self._free)

    def _forget(self, page: int) -> None:
        """Forget what an idle page holds."""
        self._pool.wake(self, page)
        del self._known[self._keys.pop(page)]

    def _give_back(self, page: int) -> None:
        self._pool.used_bytes -= self.cache.page_bytes
        heappush(self._free, page)
        self.cache.discard(page)


def pages_of(decoder: Model, capacity: int, settings: Settings, pool: Pool) -> Pages:
    """Return pages of a cache for texts of up to `capacity` tokens, as many as the pool has room for."""
    page_bytes = PAGE_TOKENS * decoder.kv_bytes_per_token(settings.kv_dtype)
    pages = max(1, pool.size_bytes // page_bytes)
    cache = Cache(decoder.config, settings.max_batch, capacity, settings.kv_dtype, pages)
    return Pages(cache, pool, shares=settings.prefix_cache)


def _key(chain: Sequence[int], ids: Sequence[int]) -> Key:
    """Return the key of the page behind those of a chain; that before it has a number of its own for its key."""
    start = len(chain) * PAGE_TOKENS
    return (chain[-1] if chain else 0), array("q", ids[start : start + PAGE_TOKENS]).tobytes()
