"""Writes a generated log in the format of KuaiRand-1K, with the videos that were shown at random.

    python tests/evaluation/kuairand_logs.py KuaiRand-1K

Each user clicks the videos of one of five kinds, number 0 to 4: seven of ten of its own kind, one of ten of others. The
service shows popular videos.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

NAMES = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
STANDARD = ("log_standard_4_08_to_4_21_1k.csv", "log_standard_4_22_to_5_08_1k.csv")
RANDOM = "log_random_4_22_to_5_08_1k.csv"
# The morning of April 8 and of April 22, 2022, in milliseconds.
FIRST, SECOND = 1_649_376_000_000, 1_650_585_600_000
TWO_WEEKS = 14 * 24 * 3_600_000
KINDS = 5


def row(user: int, video: int, time: int, click: int, is_rand: int) -> str:
    """Return a line of a log."""
    return f"{user},{video},20220410,1700,{time},{click},0,0,0,0,0,{1 - click},46186,45916,0,7639,0,{is_rand},1"


def write(folder: Path, users: int = 1000, videos: int = 500, shown: int = 60) -> None:
    """Write the three logs into the folder `data` of `folder`; `shown` videos a user and period, a third at random."""
    draw = random.Random(0).random
    (folder / "data").mkdir(parents=True)
    for name, begin, times, skew in (
        (STANDARD[0], FIRST, shown, 3),
        (STANDARD[1], SECOND, shown, 3),
        (RANDOM, SECOND, shown // 3, 1),
    ):
        lines = [NAMES]
        for user in range(users):
            for _ in range(times):
                video = int(videos * draw() ** skew)
                is_click = draw() < (0.7 if video % KINDS == user % KINDS else 0.1)
                lines.append(row(user, video, begin + int(TWO_WEEKS * draw()), int(is_click), int(name == RANDOM)))
        (folder / "data" / name).write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
