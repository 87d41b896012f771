"""One suite for all stores: SQLite in a file, and a real PostgreSQL server."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from tests.sidecar.history.conftest import a_reading, kept

from hermosis_client import errors
from hermosis_sidecar.history import Event, Kept, Life, Steps
from hermosis_sidecar.history import store as store_module
from hermosis_sidecar.history.records import KeptEvent
from hermosis_sidecar.history.store import Store
from hermosis_sidecar.history.tables import metadata

MINUTE = 1.8e9  # is the begin of one


def begin(
    store: Store, session_id: str = "a", *, create_time_s: float = 1e9, generation: int = 1, **more: float
) -> Life:
    return store.begin(
        session_id,
        create_time_s=create_time_s,
        generation=generation,
        after_step=int(more.get("after_step", 0)),
        from_time_s=more.get("from_time_s", create_time_s),
    )


def steps_of(store: Store, *of: Life, after: int = 0, before: int | None = None) -> list[int]:
    found = store.readings(of, Steps(after_step=after, before_step=before))
    return [each.reading.step for each in found]


def happened(life: Life, event_id: int) -> KeptEvent:
    event = Event(event_id=event_id, session_id=life.session_id, time_s=1.5, step=3, kind="edited", text="lr → 2")
    return KeptEvent(life_key=life.life_key, event=event)


class StoreSuite:
    """What every store does; a subclass gives the URL of an empty one."""

    @pytest.fixture
    def store(self, url: str) -> Iterator[Store]:
        store = Store(url)
        yield store
        store.close()

    def test_reading_comes_back_as_it_went_in(self, store: Store) -> None:
        life = begin(store)
        whole = a_reading(7, loss=0.1)
        undefined = a_reading(8)
        undefined = type(undefined)(
            **{name: getattr(undefined, name) for name in undefined.__dataclass_fields__ if name != "energies"},
            energies=undefined.energies._replace(loss=math.nan, entropy=math.inf),
        )
        store.add([kept(life, whole), kept(life, undefined)])
        first, second = store.readings([life], Steps())
        assert first == kept(life, whole)
        assert math.isnan(second.reading.energies.loss)
        assert second.reading.energies.entropy == math.inf
        assert store.newest(life) == store.of_ids([second.reading_id])[0]

    def test_step_of_a_life_is_kept_once(self, store: Store) -> None:
        life, other = begin(store), begin(store, "b")
        store.add([kept(life, a_reading(1, loss=5.0))])
        again = a_reading(1, loss=6.0, time_s=MINUTE + 77)
        store.add([kept(life, again), kept(life, a_reading(2)), kept(other, a_reading(9, session_id="b"))])
        assert steps_of(store, life) == [1, 2]
        assert next(store.readings([life], Steps())).reading.energies.loss == 5.0
        assert steps_of(store, other) == [9]

    def test_range_of_steps_leaves_out_both_ends_whatever_the_page(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_module, "PAGE", 3)
        life = begin(store)
        store.add([kept(life, a_reading(step)) for step in range(1, 21)])
        assert steps_of(store, life) == list(range(1, 21))
        assert steps_of(store, life, after=4, before=15) == list(range(5, 15))
        pages = list(store.losses([life], Steps(after_step=4, before_step=15)))
        assert [step for page in pages for step in page[1].tolist()] == list(range(5, 15))
        assert {loss for page in pages for loss in page[2].tolist()} == {1.0}

    def test_session_made_anew_has_nothing_of_the_old_one(self, store: Store) -> None:
        old = begin(store, create_time_s=MINUTE)
        store.add([kept(old, a_reading(step)) for step in (1, 2, 30)])  # 30 was the new one's, and not known to be
        new = begin(store, create_time_s=MINUTE + 20, from_time_s=MINUTE + 20)
        store.add([kept(new, a_reading(30))])
        assert steps_of(store, old) == [1, 2]
        assert steps_of(store, new) == [30]
        assert [life.create_time_s for life in store.lives("a")] == [MINUTE, MINUTE + 20]

    def test_what_was_done_before_a_restore_counts_up_to_where_it_went_on(self, store: Store) -> None:
        first = begin(store)
        store.add([kept(first, a_reading(step)) for step in range(1, 11)])
        begin(store, generation=2, after_step=4, from_time_s=math.inf)
        lives = store.lives("a")
        store.add([kept(lives[1], a_reading(step, time_s=MINUTE + 100 + step)) for step in (5, 6)])
        assert [life.until_step for life in lives] == [4, None]
        assert steps_of(store, *lives) == [1, 2, 3, 4, 5, 6]
        begin(store, generation=3, after_step=2, from_time_s=math.inf)
        assert steps_of(store, *store.lives("a")) == [1, 2]

    def test_life_is_begun_once(self, store: Store) -> None:
        life = begin(store)
        store.add([kept(life, a_reading(1))])
        assert begin(store) == life
        assert steps_of(store, life) == [1]

    def test_events_come_back_in_order_and_with_what_came_after_an_id(self, store: Store) -> None:
        life, other = begin(store), begin(store, "b")
        store.add([], [happened(life, 30), happened(other, 20), happened(life, 10)])
        store.add([kept(life, a_reading(1))])
        assert store.events([life], 10) == [happened(life, 10), happened(life, 30)]
        assert store.events([life], 1) == [happened(life, 30)]
        assert store.events_since(10, None) == [happened(other, 20), happened(life, 30)]
        assert store.events_since(10, 30) == [happened(other, 20)]
        assert store.readings_since(0, 10) == [kept(life, a_reading(1))]
        assert store.readings_since(kept(life, a_reading(1)).reading_id, 10) == []
        assert store.newest_id() == kept(life, a_reading(1)).reading_id
        assert sorted(store.ids_between(10, 25)) == [10, 20]

    def test_empty_store_is_empty(self, store: Store) -> None:
        assert store.newest_id() == 0
        assert store.lives() == []
        store.thin(2e9)
        store.forget(2e9)

    def test_old_readings_are_thinned_to_one_a_minute_that_knows_the_loss_of_all(self, store: Store) -> None:
        life, other = begin(store), begin(store, "b")
        store.add(
            [kept(life, a_reading(step, time_s=MINUTE + step, loss=float(step % 7))) for step in range(1, 180)]
            + [kept(other, a_reading(500, session_id="b", time_s=MINUTE + 0.5, loss=math.nan))]
        )
        store.thin(MINUTE + 125)  # Two whole minutes are older.
        found = list(store.readings([life], Steps()))
        assert [each.reading.step for each in found] == [59, 119, *range(120, 180)]
        losses = [float(step % 7) for step in range(1, 60)]
        minute = found[0].minute
        assert minute is not None
        assert (minute.readings, minute.least, minute.most) == (59, 0.0, 6.0)
        assert minute.mean == pytest.approx(sum(losses) / 59)
        assert found[0].reading.energies.loss == 59 % 7
        assert found[2].minute is None
        lonely = next(store.readings([other], Steps())).minute
        assert lonely is not None
        assert lonely.readings == 1
        assert math.isnan(lonely.mean)
        before = found
        store.thin(MINUTE + 125)
        assert list(store.readings([life], Steps())) == before, "thinning again changes nothing"

    def test_all_is_gone_in_the_end(self, store: Store) -> None:
        life, closed = begin(store), begin(store, "b")
        store.add([kept(life, a_reading(step)) for step in (1, 2, 3)], [happened(closed, int(MINUTE * 1e6))])
        store.close_lives([closed.life_key])
        store.forget(MINUTE + 2.5)
        assert steps_of(store, life) == [3]
        assert store.events([closed], 10) == []
        assert [each.session_id for each in store.lives()] == ["a"]

    def test_it_is_there_when_the_store_is_opened_again(self, store: Store, url: str) -> None:
        life = begin(store)
        store.add([kept(life, a_reading(1))])
        store.close()
        again = Store(url)
        assert again.lives("a") == [life]
        assert steps_of(again, life) == [1]
        again.close()

    def test_migrations_make_the_tables_that_the_code_uses(self, store: Store) -> None:
        with store._engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []

    def test_failure_is_typed_and_a_batch_is_kept_whole_or_not_at_all(self, store: Store) -> None:
        life = begin(store)
        broken = Kept(reading_id=5, life_key=life.life_key, reading=a_reading(1), minute=None)
        object.__setattr__(broken.reading, "contributions", None)
        with pytest.raises(errors.StorageFailed, match="history"):
            store.add([kept(life, a_reading(2)), broken])
        assert steps_of(store, life) == []


class TestSqlite(StoreSuite):
    """In a file, beside which readers may read."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/history.db"

    def test_readers_do_not_wait_for_the_writer(self, store: Store) -> None:
        with store._engine.begin() as connection:
            assert connection.execute(sa.text("PRAGMA journal_mode")).scalar() == "wal"

    def test_file_that_cannot_be_opened_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "history.db").mkdir()
        with pytest.raises(errors.StorageFailed, match="unable to open database file"):
            Store(f"sqlite:///{tmp_path}/history.db")


class TestPostgres(StoreSuite):
    """On a server of its own, the schema emptied for each test."""

    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        engine = sa.create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.begin() as connection:
            connection.execute(sa.text("DROP SCHEMA public CASCADE"))
            connection.execute(sa.text("CREATE SCHEMA public"))
        engine.dispose()
        return postgres_url


@pytest.mark.parametrize(("url", "word"), [("mysql://x/y", "mysql"), ("nonsense", "sqlite:///path")])
def test_url_that_cannot_be_right_is_explained(url: str, word: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=word):
        Store(url)
