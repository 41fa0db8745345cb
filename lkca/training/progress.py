"""What a run shows of itself: a bar, a line a stage, or nothing."""

from collections.abc import Sequence
from datetime import UTC, datetime

from lkca.training.task import Task


class Progress:
    """Shown while a run trains.

    Args:
        kind: "bar", with loss, rate and time left; "lines", one a stage; or None.
        name: of the run.
        step, total: steps taken, and all.
    """

    def __init__(self, kind: str | None, name: str, step: int, total: int):
        self.kind, self.name, self.bar, self.rate = kind, name, None, 0.0
        if kind == "bar":
            from tqdm import tqdm  # a machine that only trains, and logs lines, need not have it

            self.bar = tqdm(total=total, initial=step, desc=name, unit="step", mininterval=1, leave=False)

    def __enter__(self) -> "Progress":
        """As a context, it clears its bar at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Clear the bar, however the run ended."""
        if self.bar is not None:
            self.bar.close()

    def update(self, step: int, loss: float, rate: float) -> None:
        """After some steps: the mean loss of the stage so far, and training images a second."""
        self.rate = rate
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.3f}", img_s=f"{rate:.0f}", refresh=False)
            self.bar.update(step - self.bar.n)

    def stage(self, task: Task, points: Sequence[dict], of: int) -> None:
        """After a stage: the last point of every seed's curve; ``of`` is where the last stage will end."""
        if self.kind == "lines":
            shown = ", ".join(f"{point[task.SHOWN]:.2f}" for point in points)
            done = f"{task.AT} {points[0][task.AT]}/{of} · {task.SHOWN} {shown} · {self.rate:.0f} img/s"
            print(f"{datetime.now(UTC):%H:%M:%S} {self.name} · {done}", flush=True)
