"""What a measurement consists of: parts of groups of rows. Those of a group are compared, so measured by turns."""

import contextlib
import dataclasses
import math
from collections.abc import Callable


@dataclasses.dataclass
class Row:
    name: str
    measure: Callable  # seconds -> (figures, command)
    against: dict = dataclasses.field(default_factory=dict)  # {what it is compared with: name of that row, or several}
    cost_s: float = 0.3  # what a run takes beyond the seconds measured, to estimate the time left
    at_most_s: float = math.inf  # a longer measurement would tell no more
    times: float = 1  # so much longer than other rows, as little happens in a second

    def seconds(self, wanted):
        return min(wanted * self.times, self.at_most_s)


@dataclasses.dataclass
class Group:
    title: str
    rows: list
    around: contextlib.AbstractContextManager = dataclasses.field(default_factory=contextlib.nullcontext)
    cost_s: float = 0  # what it takes to enter and leave that
    columns: list = None  # where they are not the part's


@dataclasses.dataclass
class Part:
    title: str
    groups: Callable  # files -> [Group]
    smoke: str | Callable  # the title of the group that --smoke measures; or files -> its own, smaller groups
    columns: list  # [title, figure]
    ratios: list  # [title, what it is compared with, figure]

    def smoke_groups(self, files):
        if callable(self.smoke):
            return self.smoke(files)
        return [group for group in self.groups(files) if group.title == self.smoke]
