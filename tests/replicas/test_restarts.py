from jaxsgl.replicas.restarts import RestartPolicy, RestartWindow


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_old_restarts_are_forgotten():
    clock = Clock()
    window = RestartWindow(RestartPolicy(max_restarts=2, period_s=100, first_delay_s=1), clock)
    assert window.next_delay_s() == 1
    clock.now_s = 60
    assert window.next_delay_s() == 2
    assert window.next_delay_s() is None
    clock.now_s = 100
    assert window.next_delay_s() == 2
    clock.now_s = 500
    assert window.next_delay_s() == 1


def test_delays_grow_to_a_limit():
    window = RestartWindow(RestartPolicy(max_restarts=100, first_delay_s=1, max_delay_s=3), Clock())
    assert [window.next_delay_s() for _ in range(100)] == [1, 2] + [3] * 98
