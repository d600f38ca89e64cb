"""Which observed calls have their term in which loss, where a step has several losses."""

from torch import Tensor

from lightning_sobolev.observe.graph import reached_by
from lightning_sobolev.observe.recorder import Observed, Recorder


class ManualCalls:
    """Decides on every observed call once: at the first loss that was computed from it.

    ``call="first"`` takes the first call of each loss, ``"all"`` takes all of them, an index counts
    the calls of the whole step. A negative one is decided by the calls made so far; another call
    behind it is refused by the recorder.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder, self._call = recorder, recorder.options.call
        self._decided: set[int] = set()
        self.taken = 0

    def take(self, loss: Tensor) -> list[Observed]:
        """Return the calls whose terms belong into a loss."""
        watch = self._recorder.called()
        if watch is None:
            return []
        reached = reached_by(loss, [s for s in watch.observed if s.number not in self._decided])
        if isinstance(self._call, int) and self._call < 0:
            reached = [seen for seen in reached if seen.number == watch.calls + self._call]
            self._recorder.is_closed = bool(reached)
        if not reached:
            return []
        self._decided.update(seen.number for seen in reached)
        self.taken += 1
        return reached if self._call == "all" else reached[:1]

    def check(self) -> bool:
        """Refuse a step of which a chosen call has no term.

        Returns:
            Whether there was any call.

        Raises:
            ValueError: If a call was chosen and no loss was computed from it.
        """
        watch, call = self._recorder.called(), self._call
        if watch is None:
            return bool(self._recorder.chosen())
        if isinstance(call, int):
            self._recorder.chosen()  # an index that was never reached is refused there
        left = [seen for seen in watch.observed if seen.number not in self._decided]
        is_due = not self.taken if call == "first" or (isinstance(call, int) and call < 0) else True
        if left and is_due:
            raise ValueError(
                "under manual optimization the term enters through self.manual_backward(loss) with "
                "a loss that depends on the observed output, but training_step made no such call "
                f"for call {left[-1].number} of {watch.calls}, chosen by call={call!r}; "
                "loss.backward() cannot be seen from outside, and call= names another call"
            )
        return True
