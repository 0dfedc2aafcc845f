import pytest

from tests.server.conftest import Served


async def test_how_replicas_are_doing(served: Served) -> None:
    status, body = await served.get("/admin/replicas")
    assert status == 200
    assert [replica["replica_id"] for replica in body["replicas"]] == [0, 1]
    assert body["replicas"][1]["state"] == "ready"
    assert body["replicas"][1]["stats"]["pages_total"] == 10


@pytest.mark.parametrize("order", ["drain", "restart"])
async def test_an_order_to_a_replica(served: Served, order: str) -> None:
    status, body = await served.post(f"/admin/replicas/1/{order}", {})
    assert (status, body["replica_id"]) == (202, 1)
    assert served.engine.orders == [(order, 1)]


@pytest.mark.parametrize("name", ["2", "-1", "x", "9" * 40, "1.0", "%D9%A1"])
async def test_a_replica_that_there_is_not(served: Served, name: str) -> None:
    status, body = await served.post(f"/admin/replicas/{name}/restart", {})
    assert status == 404
    assert "eplica" in body["error"]["message"]
    assert not served.engine.orders
