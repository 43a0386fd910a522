#!/usr/bin/env python3
"""Shows what the reactors and lightweight threads of a running sluice-vhost do, like top(1) does for processes.

usage: top.py [-s SOCKET] [-i SECONDS] [-n THREADS] [--once]

For each reactor: the mode, the shares of time in which it worked, polled in vain and slept, wake-ups, pollers that are
polled now (hot) and that wait for their notification (cold), and how many threads it runs. Then the busiest threads.

options:
  -s, --socket SOCKET              default: $SLUICE_RPC_SOCKET, or /var/tmp/sluice.sock
  -i, --interval SECONDS           between two looks (default: 1)
  -n, --threads THREADS            how many threads to list (default: as many as there is room for; 20 with --once)
      --once                       looks for one interval, prints, and ends
  -h, --help                       this text

exit code: 0 done, 1 the daemon refused, 2 wrong usage, 3 no connection to a daemon
"""
import os
import shutil
import signal
import sys
import time

sys.dont_write_bytecode = True  # of rpc.py, beside it
from rpc import DEFAULT_SOCKET, Client, Failure, take_value, usage

TIMEOUT_S = 60
BAR_WIDTH = 20
BUSY, VAIN, ASLEEP = "#", "-", "."
CLEAR = "\033[H\033[J"
BOLD, PLAIN = "\033[1m", "\033[0m"
SCREEN, NO_SCREEN = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"


class Sample:
    """What the daemon has counted until now."""

    def __init__(self, client):
        self.when = time.monotonic()
        self.reactors = client.call("framework_get_reactors")["reactors"]
        self.scheduler = client.call("framework_get_scheduler")


def percent(part, whole):
    return 100 * part / whole if whole > 0 else 0.0


def bar(busy, vain):
    """Two shares in percent as a bar; each is rounded, and they fit together."""
    work = round(busy * BAR_WIDTH / 100)
    work_and_vain = max(work, round((busy + vain) * BAR_WIDTH / 100))
    return BUSY * work + VAIN * (work_and_vain - work) + ASLEEP * (BAR_WIDTH - work_and_vain)


def reactor_line(before, after, seconds):
    busy, vain, asleep = (after[name] - before[name] for name in ("busy", "idle", "asleep"))
    total = busy + vain + asleep
    busy, vain, asleep = percent(busy, total), percent(vain, total), percent(asleep, total)
    wakeups = (after["wakeups"] - before["wakeups"]) / seconds
    return (f"{after['lcore']:>4}  {after['mode']:<9}  [{bar(busy, vain)}] {busy:>6.1f} {vain:>6.1f} "
            f"{asleep:>7.1f}  {wakeups:>10.0f}  {after['hot_pollers']:>4} {after['cold_pollers']:>5}  "
            f"{len(after['lw_threads']):>7}")


def thread_loads(before, after, seconds):
    """(busy percent, core, name, id) of each thread that was there before, too; the busiest first."""
    old = {thread["id"]: thread["busy"] for reactor in before for thread in reactor["lw_threads"]}
    loads = [(percent(thread["busy"] - old[thread["id"]], seconds * 1e9), reactor["lcore"], thread["name"], thread["id"])
             for reactor in after for thread in reactor["lw_threads"] if thread["id"] in old]
    return sorted(loads, key=lambda load: (-load[0], load[3]))


def scheduler_line(before, after):
    text = f"scheduler {after['scheduler_name']}"
    if after["scheduler_name"] != "static":
        text += f", every {after['scheduler_period'] / 1e6:g} s; moves {after['moves']}"
        if after["moves"] > before["moves"]:
            text += f" (+{after['moves'] - before['moves']})"
    return text


def render(before, after, max_threads):
    seconds = after.when - before.when
    old = {reactor["lcore"]: reactor for reactor in before.reactors}
    threads = thread_loads(before.reactors, after.reactors, seconds)
    # The heads of the tables are in lines of their own, so that whoever shows them may stress them.
    thread_count = sum(len(reactor["lw_threads"]) for reactor in after.reactors)
    return [f"sluice: {len(after.reactors)} reactors, {thread_count} threads; "
            + scheduler_line(before.scheduler, after.scheduler),
            "",
            f"core  mode       {'% of time':<{BAR_WIDTH + 2}} {BUSY} busy {VAIN} vain {ASLEEP} sleep  wake-ups/s   hot  cold  threads",
            *(reactor_line(old[reactor["lcore"]], reactor, seconds) for reactor in after.reactors),
            "",
            " busy  core          id  thread",
            *(f"{load:>5.1f}  {lcore:>4}  {number:>10}  {name}" for load, lcore, name, number in threads[:max_threads])]


def show(client, interval, max_threads):
    """Redraws until a signal or the end of the daemon."""
    before = Sample(client)
    sys.stdout.write(SCREEN)
    try:
        while True:
            time.sleep(interval)
            after = Sample(client)
            size = shutil.get_terminal_size()
            lines = render(before, after, max_threads or size.lines)
            # No line wraps and none scrolls away what is above it.
            lines = [line[:size.columns] for line in lines[:size.lines - 1]]
            heads = {2, 2 + len(after.reactors) + 2}
            text = "\n".join(BOLD + line + PLAIN if number in heads else line for number, line in enumerate(lines))
            sys.stdout.write(CLEAR + text + "\n")
            sys.stdout.flush()
            before = after
    finally:
        sys.stdout.write(NO_SCREEN)
        sys.stdout.flush()


def number(option, text, least):
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not least <= value < 1e6:
        raise usage(f"{option} must be a number of at least {least:g}, not '{text}'")
    return value


def run(arguments):
    path = os.environ.get("SLUICE_RPC_SOCKET") or DEFAULT_SOCKET
    interval, max_threads, once = 1.0, None, False
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if option in ("-h", "--help"):
            print(__doc__.strip())
            return
        if option == "--once":
            once = True
            continue
        if option not in ("-s", "--socket", "-i", "--interval", "-n", "--threads"):
            raise usage(f"there is no option {option}; see top.py --help")
        value = value if equals else take_value(option, rest)
        if option in ("-s", "--socket"):
            path = value
        elif option in ("-i", "--interval"):
            interval = number(option, value, 0.05)
        else:
            max_threads = int(number(option, value, 1))
    client = Client(path, TIMEOUT_S)
    if not once:
        show(client, interval, max_threads)
    before = Sample(client)
    time.sleep(interval)
    print("\n".join(render(before, Sample(client), max_threads or 20)))


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # leaves the screen as it was
    try:
        run(sys.argv[1:])
    except Failure as failure:
        print(f"top.py: {failure}", file=sys.stderr)
        return failure.code
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
