"""Merging profiles and taking merges back."""

from __future__ import annotations

import json

from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.device_pb2 import PLATFORM_APNS, NewDevice
from onefold.v1.devices_service_pb2 import ListDevicesRequest, RegisterDeviceRequest
from onefold.v1.event_pb2 import EVENT_KIND_PURCHASE
from onefold.v1.identity_service_pb2 import (
    MERGE_OUTCOME_MERGED,
    MERGE_OUTCOME_SAME_PROFILE,
    UNDO_OUTCOME_ALREADY_UNDONE,
    UNDO_OUTCOME_UNDONE,
    ForgetProfileRequest,
    GetProfileRequest,
    IdentifyRequest,
    MergeProfilesRequest,
    MergeProfilesResponse,
    PreviewMergeRequest,
    UndoMergeRequest,
    UnforgetProfileRequest,
    UpdateProfileRequest,
)
from support.client import Client, email, failure
from support.world import World


async def put(client: Client, address: str, fields: str = "{}") -> str:
    """Writes a profile; returns its id."""
    answer = await client.identity.UpdateProfile(
        UpdateProfileRequest(identifiers=email(address), data_fields_json=fields)
    )
    return answer.profile.profile_id


async def fields(client: Client, address: str) -> dict[str, object]:
    """A profile's data fields."""
    answer = await client.identity.GetProfile(
        GetProfileRequest(identifiers=email(address), data_format=DATA_FORMAT_JSON)
    )
    value: dict[str, object] = json.loads(answer.profile.data_fields_json)
    return value


async def merge(client: Client, source: str, target: str) -> MergeProfilesResponse:
    """Merges known people."""
    return await client.identity.MergeProfiles(
        MergeProfilesRequest(source=email(source), target=email(target), allow_known_source=True)
    )


async def test_merge_and_undo_at_every_stage(email_project: Client, world: World) -> None:
    """I16 I17 I18 I19: a merge is right in every read at once, and so is its undoing, whatever the worker has done."""
    c, project_id = email_project, email_project.project_id
    for settle_first in (False, True):
        a, b = f"a{settle_first}@example.com".lower(), f"b{settle_first}@example.com".lower()
        await put(c, a, '{"plan":"gold","only":"a"}')
        await put(c, b, '{"plan":"free"}')
        x = f"x-{settle_first}"
        await c.track(anonymous_id=x, name="anon")
        await c.identity.Identify(IdentifyRequest(identifiers=email(a), anonymous_id=x))
        await c.track(identifiers=email(a), name="of a")
        await c.track(identifiers=email(b), name="of b")
        await c.devices.RegisterDevice(
            RegisterDeviceRequest(
                identifiers=email(a), device=NewDevice(token="t" + x, platform=PLATFORM_APNS, application_name="app")
            )
        )
        if settle_first:
            await world.settle(project_id)
        preview = await c.identity.PreviewMerge(
            PreviewMergeRequest(source=email(a), target=email(b), allow_known_source=True)
        )
        assert list(preview.source_fields) == ["only"]
        merged = await merge(c, a, b)
        assert merged.outcome == MERGE_OUTCOME_MERGED
        assert list(merged.merge.source_fields) == ["only"] and list(merged.merge.target_fields) == ["plan"]
        assert await fields(c, b) == {"only": "a", "plan": "free"}
        for address in (a, b):
            assert sorted(await c.names(identifiers=email(address))) == ["anon", "of a", "of b"]
        again = await merge(c, a, b)
        assert again.outcome == MERGE_OUTCOME_SAME_PROFILE
        if settle_first:
            await world.settle(project_id)
            assert sorted(await c.names(identifiers=email(b))) == ["anon", "of a", "of b"]
        await c.track(identifiers=email(a), name="late for b")
        await c.track(anonymous_id=x, name="anon late")
        assert sorted(await c.names(identifiers=email(b))) == ["anon", "anon late", "late for b", "of a", "of b"]
        devices = await c.devices.ListDevices(ListDevicesRequest(identifiers=email(b)))
        assert [device.token for device in devices.devices] == ["t" + x]

        undone = await c.identity.UndoMerge(UndoMergeRequest(merge_id=merged.merge.merge_id))
        assert undone.outcome == UNDO_OUTCOME_UNDONE
        for _ in range(3):
            assert sorted(await c.names(identifiers=email(a))) == ["anon", "anon late", "of a"]
            assert sorted(await c.names(identifiers=email(b))) == ["late for b", "of b"]
            await world.settle(project_id)
        assert await fields(c, a) == {"only": "a", "plan": "gold"}
        assert await fields(c, b) == {"plan": "free"}
        assert [d.token for d in (await c.devices.ListDevices(ListDevicesRequest(identifiers=email(a)))).devices] == [
            "t" + x
        ]
        assert not (await c.devices.ListDevices(ListDevicesRequest(identifiers=email(b)))).devices
        twice = await c.identity.UndoMerge(UndoMergeRequest(merge_id=merged.merge.merge_id))
        assert twice.outcome == UNDO_OUTCOME_ALREADY_UNDONE
        assert await world.open_intents(project_id) == 0
        assert await world.value("SELECT count(*) FROM moves WHERE project_id = $1", project_id) == 0


async def test_chains_and_refused_undo(email_project: Client, world: World) -> None:
    """F36 F46: a chain resolves to its last, and is undone from its end."""
    c = email_project
    for name in "abc":
        await put(c, f"{name}@example.com")
        await c.track(identifiers=email(f"{name}@example.com"), name=name)
    first = await merge(c, "a@example.com", "b@example.com")
    second = await merge(c, "b@example.com", "c@example.com")
    for name in "abc":
        assert sorted(await c.names(identifiers=email(f"{name}@example.com"))) == ["a", "b", "c"]
    closing = await merge(c, "c@example.com", "a@example.com")
    assert closing.outcome == MERGE_OUTCOME_SAME_PROFILE
    refused = await failure(c.identity.UndoMerge(UndoMergeRequest(merge_id=first.merge.merge_id)))
    assert (refused.reason, refused.metadata["merge_id"]) == ("MERGE_BUILT_ON", second.merge.merge_id)
    await world.work_off(c.project_id)
    await c.identity.UndoMerge(UndoMergeRequest(merge_id=second.merge.merge_id))
    assert sorted(await c.names(identifiers=email("a@example.com"))) == ["a", "b"]
    assert sorted(await c.names(identifiers=email("b@example.com"))) == ["a", "b"]
    assert await c.names(identifiers=email("c@example.com")) == ["c"]
    await c.identity.UndoMerge(UndoMergeRequest(merge_id=first.merge.merge_id))
    for _ in range(2):
        for name in "abc":
            assert await c.names(identifiers=email(f"{name}@example.com")) == [name]
        await world.settle(c.project_id)
    assert await world.value("SELECT count(*) FROM moves WHERE project_id = $1", c.project_id) == 0


async def test_association_undone(email_project: Client, world: World) -> None:
    """I19: undoing an association frees the id, and its events are the visitor's again."""
    c = email_project
    await c.track(anonymous_id="x", name="one")
    link = (await c.identity.Identify(IdentifyRequest(identifiers=email("a@example.com"), anonymous_id="x"))).link
    await world.settle(c.project_id)
    await c.track(anonymous_id="x", name="two")
    assert sorted(await c.names(identifiers=email("a@example.com"))) == ["one", "two"]
    await c.identity.UndoMerge(UndoMergeRequest(merge_id=link.merge_id))
    assert await c.names(identifiers=email("a@example.com")) == []
    assert sorted(await c.names(anonymous_id="x")) == ["one", "two"]
    await c.identity.Identify(IdentifyRequest(identifiers=email("b@example.com"), anonymous_id="x"))
    for _ in range(2):
        assert sorted(await c.names(identifiers=email("b@example.com"))) == ["one", "two"]
        assert await c.names(identifiers=email("a@example.com")) == []
        assert await c.names(anonymous_id="x") == []
        await world.settle(c.project_id)


async def test_forget(email_project: Client, world: World) -> None:
    """I20: forgetting takes effect at once, erases everything, and blocks the email until it is unforgotten."""
    c = email_project
    await put(c, "a@example.com", '{"canary":"canary-7"}')
    await c.track(anonymous_id="x", name="canary-7")
    await c.identity.Identify(IdentifyRequest(identifiers=email("a@example.com"), anonymous_id="x"))
    await c.track(identifiers=email("a@example.com"), name="canary-7", kind=EVENT_KIND_PURCHASE, event_id="canary-7")
    answer = await c.identity.ForgetProfile(ForgetProfileRequest(identifiers=email("a@example.com")))
    assert answer.profile_existed and len(answer.forgotten) == 1
    gone = await failure(c.identity.GetProfile(GetProfileRequest(identifiers=email("a@example.com"))))
    assert gone.reason == "PROFILE_NOT_FOUND"
    blocked = await failure(c.identity.UpdateProfile(UpdateProfileRequest(identifiers=email("a@example.com"))))
    assert blocked.reason == "FORGOTTEN"
    assert await c.names(anonymous_id="x") == []
    await world.settle(c.project_id)
    for table in ("events", "anonymous_events", "profiles", "identifiers", "event_ids", "merges", "devices"):
        assert (
            await world.value(
                f"SELECT count(*) FROM {table} AS t WHERE project_id = $1 AND t::text LIKE '%canary-7%'", c.project_id
            )
            == 0
        )
    await c.identity.UnforgetProfile(UnforgetProfileRequest(identifiers=email("a@example.com")))
    await put(c, "a@example.com")
