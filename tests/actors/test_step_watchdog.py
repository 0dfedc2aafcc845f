import subprocess
import sys
import threading

from jaxsgl.actors.step_watchdog import EXIT_CODE, StepWatchdog


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_step_is_overdue_when_nothing_has_ended_for_too_long():
    clock = Clock()
    watchdog = StepWatchdog(10, clock=clock)
    clock.now_s = 100
    assert watchdog.overdue_s() is None  # nothing runs
    watchdog.step_begun()
    watchdog.step_begun()
    clock.now_s = 109
    assert watchdog.overdue_s() is None
    watchdog.step_ended()
    clock.now_s = 118
    assert watchdog.overdue_s() is None  # the first has ended since
    clock.now_s = 119.5
    assert watchdog.overdue_s() == 10.5
    watchdog.step_ended()
    assert watchdog.overdue_s() is None


def test_the_thread_notices_and_ends_when_told():
    noticed = threading.Event()
    watchdog = StepWatchdog(0.02, on_overdue=lambda waited_s: noticed.set())
    watchdog.start()
    watchdog.step_begun()
    assert noticed.wait(10)
    watchdog.stop()
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}


def test_an_overdue_step_ends_the_process_and_shows_its_threads():
    program = (
        "import time\n"
        "from jaxsgl.actors.step_watchdog import StepWatchdog\n"
        "watchdog = StepWatchdog(0.05)\n"
        "watchdog.start()\n"
        "watchdog.step_begun()\n"
        "time.sleep(200)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == EXIT_CODE
    assert "no step has finished" in ended.stderr and "<string>" in ended.stderr
