"""Topology files: what they mean, and that everything wrong in them is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fwstore
from fwstore.base.errors import InvalidInput
from fwstore.base.topology import Topology

WHOLE = """
name = "superfactory"
witnesses = ["atlanta", "wisconsin", "dallas"]

[sites.atlanta]
store = "s3://fw-atlanta/prod?region=us-east-1"
uuid = "0123456789abcdef0123456789abcdef"
options = { endpoint = "https://s3.example", allow_http = true }
profile = "atlanta"

[sites.wisconsin]
store = "/data/wisconsin"

[sites.attic]
store = "attic"
role = "archive"

[sites.dallas]
store = "gs://fw-dallas"
role = "witness"

[[links]]
from = "atlanta"
to = "wisconsin"
cap = "10 Gbit/s"

[[policies]]
runs = "meta-llama/*"
to = ["wisconsin"]
every = 5
tails = false
"""


def test_a_topology_says_everything_once(tmp_path: Path) -> None:
    path = tmp_path / "topology.toml"
    path.write_text(WHOLE)
    found = fwstore.Topology.load(path)
    assert found.name == "superfactory"
    assert found.witnesses == ("atlanta", "wisconsin", "dallas")
    assert [(s.name, s.role, s.keeps) for s in found.sites.values()] == [
        ("atlanta", "train", True),
        ("wisconsin", "train", True),
        ("attic", "archive", True),
        ("dallas", "witness", False),
    ]
    atlanta = found.sites["atlanta"]
    assert atlanta.uuid == "0123456789abcdef0123456789abcdef"
    assert (atlanta.profile, atlanta.options["allow_http"]) == ("atlanta", True)
    assert found.sites["wisconsin"].store == "/data/wisconsin"
    assert found.sites["attic"].store == str(tmp_path / "attic")
    assert found.cap("atlanta", "wisconsin") == 1.25e9
    assert found.cap("wisconsin", "atlanta") is None


def test_a_job_may_be_cut_off_for_ever_or_for_a_while() -> None:
    assert Topology.parse(WHOLE, "x").cut_off_after_s is None
    assert Topology.parse('cut_off = "continue"' + WHOLE, "x").cut_off_after_s is None
    stops = 'cut_off = "stop"\ncut_off_after = "30m"' + WHOLE
    assert Topology.parse(stops, "x").cut_off_after_s == 1800


def test_the_first_policy_that_means_a_run_decides() -> None:
    found = Topology.parse(WHOLE, "topology.toml")
    policy = found.policy("meta-llama/8B")
    assert (policy.to, policy.every, policy.tails, policy.pins) == (("wisconsin",), 5, False, True)
    other = found.policy("meta-llama/8B/tuned")
    assert (other.to, other.every, other.tails, other.pins) == (
        ("atlanta", "wisconsin", "attic"),
        1,
        True,
        True,
    )


def test_every_site_but_archives_votes_unless_it_is_said() -> None:
    text = WHOLE.replace('witnesses = ["atlanta", "wisconsin", "dallas"]', "")
    assert Topology.parse(text, "t").witnesses == ("atlanta", "wisconsin", "dallas")


def test_the_local_site_is_the_one_that_is_named_or_the_only_one_that_trains() -> None:
    found = Topology.parse(WHOLE, "t")
    assert found.local("attic").name == "attic"
    with pytest.raises(InvalidInput, match="FWSTORE_SITE: atlanta or wisconsin"):
        found.local(None)
    with pytest.raises(InvalidInput, match="only a witness; write atlanta"):
        found.local("dallas")
    with pytest.raises(InvalidInput, match="not in the topology"):
        found.local("Atlanta")
    alone = Topology.parse('[sites.here]\nstore = "memory://here"\n', "t")
    assert alone.local(None).name == "here"
    assert alone.witnesses == ("here",)


SITES = '[sites.a]\nstore = "/a"\n[sites.b]\nstore = "/b"\n'
WRONG = {
    "not TOML": ("sites = [", "t.toml is not TOML"),
    "nothing": ("", "t.toml: sites: there must be a site of role train"),
    "only an archive": ('[sites.a]\nstore = "/a"\nrole = "archive"', "role train"),
    "sites no table": ('sites = "a"', "sites: must be a table"),
    "a site no table": ("[sites]\na = 5", "sites.a: must be a table"),
    "no store": ("[sites.a]", "sites.a.store: is missing; it must be a text"),
    "an empty store": ('[sites.a]\nstore = " "', "sites.a.store: must be an address"),
    "store no text": ("[sites.a]\nstore = 5", "sites.a.store: must be a text in quotes, not 5"),
    "a role": (
        '[sites.a]\nstore = "/a"\nrole = "boss"',
        "sites.a.role: must be train or archive or witness, not 'boss'",
    ),
    "a short uuid": ('[sites.a]\nstore = "/a"\nuuid = "12"', "sites.a.uuid: must be 32 hexa"),
    "an unknown key": (
        '[sites.a]\nstore = "/a"\ncolour = "red"',
        "sites.a.colour: is not known here; write store or role or uuid or options or profile",
    ),
    "an unknown table": (SITES + "[site]", "t.toml: site: is not known here; write name or"),
    "a secret": (
        '[sites.a]\nstore = "/a"\noptions = { secret_access_key = "x" }',
        "sites.a.options.secret_access_key: may not stand in a topology",
    ),
    "an option no scalar": (
        '[sites.a]\nstore = "/a"\noptions = { endpoint = [] }',
        "sites.a.options.endpoint: must be a text",
    ),
    "a bad name": ('[sites."a/b"]\nstore = "/a"', "sites.a/b: 'a/b' is no name of a site"),
    "names apart in case": (
        SITES + '[sites.A]\nstore = "/c"',
        "sites.A: differs from a in case alone",
    ),
    "one store twice": (
        '[sites.a]\nstore = "/a"\n[sites.b]\nstore = "/a/"',
        "sites.b: has the store of a",
    ),
    "one uuid twice": (
        "\n".join(f'[sites.{n}]\nstore = "/{n}"\nuuid = "{"5" * 32}"' for n in "ab"),
        "sites.b: has the uuid of a",
    ),
    "an unknown witness": ('witnesses = ["c"]\n' + SITES, "witnesses: must list some of a, b"),
    "a witness twice": ('witnesses = ["a", "a"]\n' + SITES, "each once"),
    "no witness": ("witnesses = []\n" + SITES, "witnesses: must list some of"),
    "a witness no text": ("witnesses = [[]]\n" + SITES, "witnesses: must list some of"),
    "a link to nowhere": (
        SITES + '[[links]]\nfrom = "a"\nto = "c"\ncap = "1 Gbit/s"',
        "links[0].to: must be a or b, not 'c'",
    ),
    "a link to itself": (
        SITES + '[[links]]\nfrom = "a"\nto = "a"\ncap = "1 Gbit/s"',
        "links[0].to: a link leads from one site to another",
    ),
    "a link twice": (
        SITES + '[[links]]\nfrom = "a"\nto = "b"\ncap = "1 Gbit/s"\n' * 2,
        "the link from a to b stands there twice",
    ),
    "a way to be cut off that is none": (
        'cut_off = "wait"\n' + SITES,
        "cut_off: must be continue or stop",
    ),
    "no time after which to stop": (
        'cut_off = "stop"\n' + SITES,
        "cut_off_after: is missing",
    ),
    "a time after which to go on": (
        'cut_off_after = "30m"\n' + SITES,
        'cut_off_after: needs cut_off = "stop"',
    ),
    "no time at all": (
        'cut_off = "stop"\ncut_off_after = "0s"\n' + SITES,
        "cut_off_after: must be more than nothing",
    ),
    "a time without a unit": (
        'cut_off = "stop"\ncut_off_after = "30"\n' + SITES,
        "cut_off_after: '30' is not a duration",
    ),
    "a cap without a unit": (
        SITES + '[[links]]\nfrom = "a"\nto = "b"\ncap = "10"',
        "links[0].cap: '10' is not a rate; write for example 10 Gbit/s",
    ),
    "a cap of nothing": (
        SITES + '[[links]]\nfrom = "a"\nto = "b"\ncap = "0 Gbit/s"',
        "links[0].cap",
    ),
    "links no list": ('links = "fast"\n' + SITES, "links: must be tables: [[links]]"),
    "a link no table": ("links = [5]\n" + SITES, "links[0]: must be a table"),
    "policies one table": (SITES + '[policies]\nruns = "*"', "policies: must be tables: [["),
    "a policy without runs": (SITES + '[[policies]]\nto = ["a"]', "policies[0].runs: is missing"),
    "every 0th": (
        SITES + '[[policies]]\nruns = "*"\nto = ["a"]\nevery = 0',
        "policies[0].every: must be a whole number of at least 1, not 0",
    ),
    "every true": (
        SITES + '[[policies]]\nruns = "*"\nto = ["a"]\nevery = true',
        "policies[0].every: must be a whole number",
    ),
    "copies to a witness": (
        SITES + '[sites.w]\nstore = "/w"\nrole = "witness"\n[[policies]]\nruns = "*"\nto = ["w"]',
        "policies[0].to: must list some of a, b, each once, not ['w']",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_may_not_stand_there_is_named_with_its_place(what: str) -> None:
    text, told = WRONG[what]
    with pytest.raises(InvalidInput) as error:
        Topology.parse(text, "t.toml")
    assert told in error.value.message
    assert error.value.message.startswith("t.toml")


def test_one_store_under_two_spellings_of_its_path_is_one_site(tmp_path: Path) -> None:
    path = tmp_path / "topology.toml"
    path.write_text(f'[sites.a]\nstore = "x"\n[sites.b]\nstore = "{tmp_path / "x"}"\n')
    with pytest.raises(InvalidInput, match="has the store of a"):
        Topology.load(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.toml cannot be read"):
        Topology.load(tmp_path / "nowhere.toml")


_WORDS = ["sites", "a", "store", "role", "uuid", "options", "links", "from", "to", "cap", "every"]
_VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(_VALUES, st.sampled_from(["sites", "witnesses", "links", "policies", "name"]))
def test_no_table_of_any_shape_is_more_than_refused(value: Any, key: str) -> None:
    """Whatever TOML may hold, a mistake in it is `InvalidInput`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fwstore.base.topology.tomllib.loads",
            lambda _: {"sites": {"a": {"store": "/a"}}} | {key: value},
        )
        told = "t.toml: "
        try:
            found = Topology.parse("", "t.toml")
        except InvalidInput as error:
            told = error.message
        else:
            assert set(found.witnesses) <= set(found.sites)
        assert told.startswith("t.toml: ")
