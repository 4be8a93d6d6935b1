"""The shortest histories in which the model and the service disagreed, each as a test of its own."""

from __future__ import annotations

from datetime import timedelta

import pytest

from conftest import MakeProject
from onefold.v1.activation_service_pb2 import CreateUnknownProfileRequest
from onefold.v1.device_pb2 import PLATFORM_FCM, NewDevice
from onefold.v1.devices_service_pb2 import DisableDeviceRequest, ListDevicesRequest, RegisterDeviceRequest
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import TrackRequest
from onefold.v1.identity_service_pb2 import (
    LINK_OUTCOME_LINKED,
    DeleteProfileRequest,
    ForgetProfileRequest,
    GetProfileRequest,
    IdentifyRequest,
    MergeProfilesRequest,
    UndoMergeRequest,
    UpdateProfileRequest,
)
from onefold.v1.profile_pb2 import Identifiers
from support.client import Client, email, failure, user
from support.merging import fields
from support.world import World

OVER_5_MINUTES = timedelta(minutes=5, seconds=1)


async def put(client: Client, who: Identifiers, **more: object) -> str:
    """Writes a profile; returns its id."""
    request = UpdateProfileRequest(identifiers=who, **more)  # type: ignore[arg-type]  # prefer_user_id
    return (await client.identity.UpdateProfile(request)).profile.profile_id


async def forget(client: Client, who: Identifiers) -> None:
    """Forgets a person."""
    await client.identity.ForgetProfile(ForgetProfileRequest(identifiers=who))


async def merge(client: Client, source: Identifiers, target: Identifiers, request_id: str = "") -> str:
    """Merges known people; returns the ledger's id."""
    request = MergeProfilesRequest(source=source, target=target, allow_known_source=True, request_id=request_id)
    return (await client.identity.MergeProfiles(request)).merge.merge_id


async def undo(client: Client, merge_id: str) -> None:
    """Takes a merge back."""
    await client.identity.UndoMerge(UndoMergeRequest(merge_id=merge_id))


async def found(client: Client, who: Identifiers) -> Identifiers:
    """The identifiers of whom a name leads to."""
    return (await client.identity.GetProfile(GetProfileRequest(identifiers=who))).profile.identifiers


async def register(client: Client, who: Identifiers) -> None:
    """Registers the token t."""
    device = NewDevice(token="t", platform=PLATFORM_FCM, application_name="app")
    await client.devices.RegisterDevice(RegisterDeviceRequest(identifiers=who, device=device))


async def is_on(client: Client, who: Identifiers) -> list[bool]:
    """Whether the devices of a person are on."""
    devices = (await client.devices.ListDevices(ListDevicesRequest(identifiers=who))).devices
    return [device.endpoint_enabled for device in devices]


async def test_a_forgotten_visitors_events_are_nobody_elses(email_project: Client, world: World) -> None:
    """I20 F43: the anonymous events of a forgotten person do not come back under whoever uses the cookie next."""
    c = email_project
    await c.track(anonymous_id="x", name="secret")
    await c.identity.Identify(IdentifyRequest(identifiers=email("a@example.com"), anonymous_id="x"))
    await forget(c, email("a@example.com"))
    await c.identity.Identify(IdentifyRequest(identifiers=email("b@example.com"), anonymous_id="x"))
    assert await c.names(identifiers=email("b@example.com")) == []
    await world.settle(c.project_id)
    assert await c.names(identifiers=email("b@example.com")) == []


async def test_events_told_after_a_forget_are_kept(email_project: Client, world: World) -> None:
    """A1 X3 I20: forgetting erases what was received until then; the next visitor's event with the id is not lost."""
    c = email_project
    await c.identity.Identify(IdentifyRequest(identifiers=email("a@example.com"), anonymous_id="x"))
    await forget(c, email("a@example.com"))
    await c.track(anonymous_id="x", name="new")
    assert await c.names(anonymous_id="x") == ["new"]
    await world.settle(c.project_id)
    assert await c.names(anonymous_id="x") == ["new"]


async def test_a_freed_identifier_can_be_forgotten(email_project: Client, world: World) -> None:
    """I20 I17: an identifier that a merge left to somebody can be forgotten when it leads nowhere any more."""
    c = email_project
    await put(c, email("a@example.com"))
    await put(c, email("b@example.com"))
    await merge(c, email("a@example.com"), email("b@example.com"))
    await world.pass_time(c.project_id, OVER_5_MINUTES)
    await forget(c, email("a@example.com"))
    refused = await failure(c.identity.UpdateProfile(UpdateProfileRequest(identifiers=email("a@example.com"))))
    assert refused.reason == "FORGOTTEN"


@pytest.mark.parametrize("project_type", ["EMAIL", "USER_ID"])
async def test_a_shared_identifier_is_set_though_a_merge_left_it(make_project: MakeProject, project_type: str) -> None:
    """I3 P2: what several may share is set on whoever is given it, also while it leads to the target of a merge."""
    c = await make_project(project_type)

    def who(unique: str, shared: str) -> Identifiers:
        if project_type == "EMAIL":
            return Identifiers(email=f"{unique}@example.com", user_id=shared)
        return Identifiers(user_id=unique, email=f"{shared}@example.com")

    await put(c, who("a", "s"))
    await put(c, who("b", "other"))
    await merge(c, who("a", "s"), who("b", "other"))
    for unique in ("c", "b"):
        await put(c, who(unique, "s"))
        assert await found(c, who(unique, "s")) == who(unique, "s")


async def test_a_forgotten_placeholder_is_refused(email_project: Client) -> None:
    """F42 I8: a placeholder email whose person was forgotten is not generated again, and the reason says so."""
    c = email_project
    await put(c, user("u"), prefer_user_id=True)
    await forget(c, email((await found(c, user("u"))).email))
    refused = await failure(c.identity.UpdateProfile(UpdateProfileRequest(identifiers=user("u"), prefer_user_id=True)))
    assert refused.reason == "FORGOTTEN"


async def test_a_shared_identifier_leads_to_the_later_merge(email_project: Client, world: World) -> None:
    """I17: a source's user_id leads to the target for 5 minutes, also if an earlier source had the same one."""
    c = email_project
    await put(c, Identifiers(email="a@example.com", user_id="s"))
    await put(c, Identifiers(email="c@example.com", user_id="s"))
    await put(c, Identifiers(email="b@example.com", user_id="other"))
    await merge(c, email("a@example.com"), email("b@example.com"))
    await world.pass_time(c.project_id, OVER_5_MINUTES)
    await merge(c, email("c@example.com"), email("b@example.com"))
    assert (await found(c, user("s"))).email == "b@example.com"


async def test_undoing_a_merge_keeps_what_an_earlier_conversion_left(email_project: Client) -> None:
    """I17 I19: the name a person had before a renaming leads to them for its 5 minutes, merged and undone or not."""
    c = email_project
    await put(c, email("a@example.com"))
    await put(c, email("b@example.com"))
    await merge(c, email("a@example.com"), email("new@example.com"))
    merge_id = await merge(c, email("new@example.com"), email("b@example.com"))
    await undo(c, merge_id)
    assert (await found(c, email("a@example.com"))).email == "new@example.com"


@pytest.mark.parametrize("worked_off", [False, True])
async def test_a_device_disabled_for_all_stays_off_when_a_merge_is_undone(
    email_project: Client, world: World, worked_off: bool
) -> None:
    """D4 D7 F51: undoing a merge switches nothing on that was disabled since, whether the workers are done or not."""
    c = email_project
    for address in ("a@example.com", "b@example.com"):
        await register(c, email(address))
    merge_id = await merge(c, email("a@example.com"), email("b@example.com"))
    await c.devices.DisableDevice(DisableDeviceRequest(token="t"))
    if worked_off:
        await world.settle(c.project_id)
    await undo(c, merge_id)
    assert [await is_on(c, email("a@example.com")), await is_on(c, email("b@example.com"))] == [[False], [False]]


async def test_a_shared_device_disabled_for_the_target_stays_off_for_both(email_project: Client) -> None:
    """D7, README: a device disabled since a merge stays off for the source too, also one that both had held."""
    c = email_project
    for address in ("a@example.com", "b@example.com"):
        await register(c, email(address))
    merge_id = await merge(c, email("a@example.com"), email("b@example.com"))
    await c.devices.DisableDevice(DisableDeviceRequest(token="t", identifiers=email("b@example.com")))
    await undo(c, merge_id)
    assert [await is_on(c, email("a@example.com")), await is_on(c, email("b@example.com"))] == [[False], [False]]


@pytest.mark.parametrize("last", ["register", "disable"])
async def test_the_newest_operation_counts_though_it_changed_nothing(email_project: Client, last: str) -> None:
    """D7: the newest operation on a token decides after a merge, also one that left the copy as it was."""
    c = email_project
    on, off = email("on@example.com"), email("off@example.com")
    disable = DisableDeviceRequest(token="t", identifiers=off)
    await register(c, on)
    await register(c, off)
    await c.devices.DisableDevice(disable)
    await register(c, on)
    if last == "disable":
        await c.devices.DisableDevice(disable)
    source, target = (on, off) if last == "register" else (off, on)
    await merge(c, source, target)
    assert await is_on(c, target) == [last == "register"]


async def test_a_stored_answer_of_a_merge_is_forgotten_with_its_source(email_project: Client, world: World) -> None:
    """F43: nothing of a forgotten person stays in the answers kept by request_id, also of merges that were undone."""
    c = email_project
    await put(c, email("canary@example.com"))
    await put(c, email("b@example.com"))
    merge_id = await merge(c, email("canary@example.com"), email("b@example.com"), request_id="m")
    await c.identity.UndoMerge(UndoMergeRequest(merge_id=merge_id, request_id="u"))
    await forget(c, email("canary@example.com"))
    kept = "SELECT count(*) FROM requests WHERE project_id = $1 AND position('canary'::bytea IN answer) > 0"
    assert await world.value(kept, c.project_id) == 0


async def test_a_delete_sent_again_deletes_nobody_else(email_project: Client, world: World) -> None:
    """X1: the answer of a delete is kept while a worker erases, and the request sent again spares who came since."""
    c = email_project
    request = DeleteProfileRequest(identifiers=email("a@example.com"), request_id="d")
    await put(c, email("a@example.com"))
    await c.identity.DeleteProfile(request)
    await world.settle(c.project_id)
    await put(c, email("a@example.com"))
    assert (await c.identity.DeleteProfile(request)).replayed
    assert (await found(c, email("a@example.com"))).email == "a@example.com"


async def test_a_visitors_answers_are_kept_after_a_forget(email_project: Client, world: World) -> None:
    """X1: what is told with an anonymous_id after its person was forgotten is stored once, though a worker erases."""
    c = email_project
    await c.identity.Identify(IdentifyRequest(identifiers=email("a@example.com"), anonymous_id="x"))
    await forget(c, email("a@example.com"))
    request = TrackRequest(event=NewEvent(anonymous_id="x", name="new"), request_id="t")
    await c.events.Track(request)
    await world.settle(c.project_id)
    assert (await c.events.Track(request)).replayed


async def test_an_event_id_told_anew_outlives_the_event_that_had_it_before(email_project: Client, world: World) -> None:
    """E3 I20: erasing a person frees the event ids of that person's events, not one that is another event's since."""
    c = email_project
    first, second = ({"identifiers": email(f"{name}@example.com"), "name": "n", "event_id": "e"} for name in "ab")
    for who in ("a", "b"):
        await put(c, email(f"{who}@example.com"))
    await c.track(**first)
    await world.pass_time(c.project_id, timedelta(days=36))
    assert not (await c.track(**second)).duplicate
    await forget(c, email("a@example.com"))
    await world.settle(c.project_id)
    assert (await c.track(**second)).duplicate


async def test_a_field_set_anew_is_not_taken_back_by_a_later_merges_undo(email_project: Client) -> None:
    """I19: what one merge had brought, and its undo has taken, is nothing that undoing a later merge takes again."""
    c = email_project
    await put(c, email("a@example.com"), data_fields_json='{"plan": 1}')
    for who in ("b", "c"):
        await put(c, email(f"{who}@example.com"))
    earlier = await merge(c, email("a@example.com"), email("b@example.com"))
    later = await merge(c, email("c@example.com"), email("b@example.com"))
    await undo(c, earlier)
    await put(c, email("b@example.com"), data_fields_json='{"plan": 1}')
    await undo(c, later)
    assert await fields(c, email("b@example.com")) == {"plan": 1}


async def test_an_identifier_leads_to_the_survivor_for_as_long_as_any_merge_left_it(
    email_project: Client, world: World
) -> None:
    """I17: a source's user_id leads to the target for 5 minutes, also if another source brings one that ends sooner."""
    c = email_project
    for who, user_id in (("a", "s"), ("b", "o"), ("c", "s"), ("d", "p")):
        await put(c, Identifiers(email=f"{who}@example.com", user_id=user_id))
    await merge(c, email("a@example.com"), email("b@example.com"))
    await world.pass_time(c.project_id, timedelta(minutes=3))
    await merge(c, email("c@example.com"), email("d@example.com"))
    await merge(c, email("b@example.com"), email("d@example.com"))
    await world.pass_time(c.project_id, timedelta(minutes=3))
    assert (await found(c, user("s"))).email == "d@example.com"


@pytest.mark.parametrize("name", ["a", "k"])
async def test_a_visitor_is_learned_though_somebody_has_the_temporary_id(email_project: Client, name: str) -> None:
    """U5 I10 A4: also where others share the temporary user_id, the visitor whom the anonymous_id stands for merges."""
    c = email_project
    await put(c, email("k@example.com"))
    temporary = "6f0a3a52-91a5-4b0c-8f0b-1f2e3d4c5b6a"
    request = CreateUnknownProfileRequest(user_id=temporary, data_fields_json='{"theme": "dark"}')
    await c.activation.CreateUnknownProfile(request)
    await c.identity.Identify(IdentifyRequest(identifiers=user(temporary), anonymous_id="x"))
    await put(c, Identifiers(email="k@example.com", user_id=temporary))
    who = email(f"{name}@example.com")
    answer = await c.identity.Identify(IdentifyRequest(identifiers=who, anonymous_id="x"))
    assert answer.link.outcome == LINK_OUTCOME_LINKED
    assert await fields(c, who) == {"theme": "dark"}


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("merged_again", [False, True])
async def test_a_device_that_the_target_registered_and_disabled_since_stays(
    email_project: Client, world: World, settled: bool, merged_again: bool
) -> None:
    """I19 D7: a device that a merge brought, and that the target then registered itself and disabled, is the target's
    own: it stays when the merge is undone, off, and so it does when a later merge had switched it on and is undone too.
    """
    c = email_project
    target = email("b@example.com")
    await register(c, email("a@example.com"))
    await put(c, target)
    merges = [await merge(c, email("a@example.com"), target)]
    await register(c, target)
    await c.devices.DisableDevice(DisableDeviceRequest(token="t", identifiers=target))
    if merged_again:
        await register(c, email("c@example.com"))
        merges.append(await merge(c, email("c@example.com"), target))
        assert await is_on(c, target) == [True]
    for merge_id in merges:
        if settled:
            await world.settle(c.project_id)
        await undo(c, merge_id)
    assert await is_on(c, target) == [False]
    assert await is_on(c, email("a@example.com")) == [False]
    if merged_again:
        assert await is_on(c, email("c@example.com")) == [True]
