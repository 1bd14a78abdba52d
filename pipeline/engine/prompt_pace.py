"""How many prompt tokens a second one process sends to one endpoint under interactive demand. Pure.

Reading prompts stretches every step of an engine, and with it the time between two tokens of every answer. Without
interactive demand nothing is held back. With it, prompts leave evenly at a rate that follows the time between tokens, as the
engine reports it about once a second:

    rate *= cbrt(aim / seen)

The cube root, because that time answers more than in proportion where prompts fill most of a step. Evenly, because a
burst would fill one step and leave the next one empty: the mean would be right and half of the steps too long.
"""

from math import cbrt, inf

_AIM_SHARE = 0.86  # steps differ: the mean stays below what nearly all may take
_BURST_SECONDS = 0.02
_SHORTEST_SECONDS = 0.001
_MOST_LESS, _MOST_MORE = 0.5, 1.25
_LONGEST_UPDATE_SECONDS = 5.0
_MORE_WITHOUT_ANSWERS = 1.05
_SMOOTHING = 0.3
_OPEN_STEPS = 1.75  # a row waits for the end of a step, and is read in the next one
SHORT_TOKENS = 8
"""Answers of so few tokens cost the engine little more than their prompts."""
_LOWEST_RATE, _LOWEST_SHARE = 100.0, 0.1  # tokens a second, and of what is usual without demand


class PromptPace:
    """The pace of one process at one endpoint.

    Args:
        token_seconds: the time between two tokens of an answer that is aimed at.
    """

    def __init__(self, token_seconds: float) -> None:
        self._aim = token_seconds * _AIM_SHARE
        self._active = False
        self._rate: float | None = None  # of the last time that it was active
        self._room = self._at = 0.0
        self._sent = self._open = 0
        self._held = False
        self._usual: float | None = None  # tokens a second without demand

    def set_active(self, active: bool) -> None:
        """Begin to hold prompts back, or stop; both take effect at once."""
        self._active = active

    def room(self, now: float) -> float:
        """Return the prompt tokens that may be sent now: without limit, or at most a few rows; negative after a long one."""
        if not self._active or self._rate is None:
            return inf
        self._room = min(self._room + (now - self._at) * self._rate, self._rate * _BURST_SECONDS)
        self._at = now
        room = min(self._room, self._rate * self._aim * _OPEN_STEPS - self._open) if self._open else self._room
        self._held = self._held or room <= 0
        return room

    def ready_in(self, now: float) -> float:
        """Return the seconds until a row may be sent."""
        room = self.room(now)
        return 0.0 if room > 0 or self._rate is None else max(_SHORTEST_SECONDS, -room / self._rate)

    def begin(self, tokens: int, now: float, *, short: bool) -> None:
        """Record prompts that are sent; `short` if their answers end with their first tokens."""
        self._sent += tokens
        self._open += tokens if short else 0
        if self.room(now) < inf:
            self._room -= tokens

    def end(self, tokens: int, *, short: bool) -> None:
        """Record that their request has ended."""
        self._open -= tokens if short else 0

    def update(self, token_seconds: float | None, seconds: float, *, has_backlog: bool) -> None:
        """Adjust the rate.

        Args:
            token_seconds: between two tokens of an answer, the mean since the last update; None if there were none.
            seconds: since the last update.
            has_backlog: whether more rows would have been sent.
        """
        used, self._sent = self._sent / seconds, 0
        held, self._held = self._held, False
        if not self._active:
            if has_backlog and seconds < _LONGEST_UPDATE_SECONDS:
                self._usual = used if self._usual is None else self._usual + _SMOOTHING * (used - self._usual)
            return
        if token_seconds is None:  # no answer is written here: the chats are at another endpoint, or there is a gap
            if self._rate is not None and held:
                self._rate *= _MORE_WITHOUT_ANSWERS
            return
        factor = min(max(cbrt(self._aim / max(token_seconds, 1e-6)), _MOST_LESS), _MOST_MORE)
        if self._rate is None:
            # What bulk sent before says more than the first second, in which its rows in flight drain.
            begin = max(used, self._usual or 0.0)
            if factor < 1.0 and begin and has_backlog and seconds < _LONGEST_UPDATE_SECONDS:
                self._rate = max(self._lowest, begin * factor)
        elif factor < 1.0 or held:
            self._rate = max(self._lowest, self._rate * factor)

    @property
    def _lowest(self) -> float:
        """The least that is sent, also to an engine that is slow by itself."""
        return max(_LOWEST_RATE, _LOWEST_SHARE * (self._usual or 0.0))
