"""Published logs: the files of each, their columns, counts, licence, and where to get them. `PublicLog` reads them.

To add one, add an entry to `PUBLIC_LOGS`, and a sample of its files to `tests/data/test_public_logs.py`.

Formats are those that the publishers describe, and those that the loaders of RecBole (`RUCAIBox/RecSysDatasets`),
DataRec, the SR-GNN authors and `yandex/yambda` read. Counts are the publishers' own unless
`Counts.origin` calls them unverified. The MD5 digests of MovieLens are those that GroupLens publishes next to each
archive (`ml-32m.zip.md5`), as loaders quote them, DataRec (20M) and `eli-osherovich/papers_with_code` (20M, 25M) among
them. Other logs have no download: their licence does not allow it, or no address with a checksum could be read.
"""

# Longer than 400 lines because it is one list of logs.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from seqrec.data.sources.source import Counts
from seqrec.errors import InputError

if TYPE_CHECKING:
    import polars as pl

    Derive = Callable[[pl.LazyFrame], pl.LazyFrame]


@dataclass(frozen=True)
class Files:
    """Files of one table, and how to read them.

    Attributes:
        names: Globs, relative to the log's folder; the first that any file matches is read. `.gz` or `.zst` may follow.
            The text at a `*` in the name of a log's file is also that at a `*` in the names of its tables.
        key: In a table of items or users, the column of ids.
        separator: Character between fields of text; None is a comma, or a tab for `.tsv`.
        quote: Character around fields; None if quotes are characters like others.
        header: Names of the columns, if the first line does not contain them.
        keys: Keys to read of the objects in JSON lines.
        literals: Whether the lines are dictionaries as Python prints them, not JSON.
        missing_values: Text of a missing value; None is `seqrec.data.ids.MISSING_VALUES`.
        texts: Columns that are text though their first values may be numbers.
        needs: Columns that `derive` reads.
        derive: Returns the frame with other columns.
        numbered: Whether the names end in numbers, each of which must be there.
        up: Folders above that of the log's file in which a table may be.
    """

    names: tuple[str, ...]
    key: str = ""
    separator: str | None = None
    quote: str | None = '"'
    header: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    literals: bool = False
    missing_values: tuple[str, ...] | None = None
    texts: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    derive: Derive | None = None
    numbered: bool = False
    up: int = 0


@dataclass(frozen=True)
class Declaration:
    """A published log.

    Attributes:
        title: What it is, in a few words.
        events: Its files of events.
        user, item, timestamp: Their columns. The timestamp is None if the rows are in time order.
        unit: Unit of the times that are read.
        items, users: Its tables.
        counts: Its size.
        licence: Its licence in the publisher's words, shortened.
        place: Where to get the files.
        archive: Name of the archive that the publisher offers; empty if it offers the files themselves.
        md5: Digest of that archive, if `place` is its address, from which it may be downloaded; else empty.
    """

    title: str
    events: Files
    user: str
    item: str
    timestamp: str | None
    unit: str
    place: str
    licence: str
    items: tuple[Files, ...] = ()
    users: tuple[Files, ...] = ()
    counts: Counts | None = None
    archive: str = ""
    md5: str = ""


def _films(frame: pl.LazyFrame) -> pl.LazyFrame:
    import polars as pl

    genres = pl.col("genres").str.split("|").list.set_difference(pl.lit(["(no genres listed)"]))
    return frame.with_columns(genres, year=pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int64))


def _lists(*names: str) -> Derive:
    """Return a function that reads columns of JSON lists as lists of text, whatever the depth of their brackets."""

    def derive(frame: pl.LazyFrame) -> pl.LazyFrame:
        import polars as pl

        found = [name for name in names if name in frame.collect_schema()]
        # Nested lists, as in Amazon's of 2014, become one.
        flat = [pl.col(name).str.replace_all(r"\]\s*,\s*\[", ",").str.replace_all(r"\[\[+|\]\]+", "") for name in found]
        lists = [
            pl.when(text.str.strip_chars() == "")
            .then(pl.lit("[]"))
            .when(text.str.starts_with("["))
            .then(text)
            .otherwise(pl.format("[{}]", text))
            for text in flat
        ]
        return frame.with_columns(
            text.str.json_decode(pl.List(pl.String)).list.unique(maintain_order=True).alias(name)
            for name, text in zip(found, lists, strict=True)
        )

    return derive


def _users_first(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Return the frame of ratings of 2014; refuse those of 2018, in which the item comes before the user.

    Ids of items have 10 characters, and those of users most often more.

    Raises:
        InputError: if they are of 2018.
    """
    import polars as pl

    wide = frame.head(1000).select((pl.col("user", "item").str.len_chars() == 10).fill_null(False)).collect()
    if len(wide) and wide["user"].all() and not wide["item"].any():
        raise InputError(
            "its items come first, as in the ratings of 2018: read them as a Table, with header=[item, user, rating, "
            "timestamp]"
        )
    return frame


def _games(frame: pl.LazyFrame) -> pl.LazyFrame:
    import polars as pl

    names = [name for name in ("title", "app_name") if name in frame.collect_schema()]
    titled = frame.with_columns(title=pl.coalesce(names)) if names else frame
    return (
        _lists("genres", "tags")(titled)
        .filter(pl.col("id").is_not_null())
        .unique("id", keep="first", maintain_order=True)
    )


def _businesses(frame: pl.LazyFrame) -> pl.LazyFrame:
    import polars as pl

    names = frame.collect_schema().names()
    # Until 2017 a list, since then text such as "Mexican, Burgers".
    text = pl.col("categories").str.strip_chars("[]").str.replace_all('"', "")
    split = [text.str.split(",").list.eval(pl.element().str.strip_chars())] if "categories" in names else []
    return frame.with_columns(split).rename({"name": "title"}, strict=False)


def _sequences(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Return a row for each event of a frame with a row for each user and lists of events; other frames unchanged."""
    if not any(str(dtype).startswith("List") for dtype in frame.collect_schema().values()):
        return frame
    from seqrec.data.sources.exploding import exploded

    return exploded(frame)


def _time_in_session(frame: pl.LazyFrame) -> pl.LazyFrame:
    import polars as pl

    day = pl.col("eventdate").str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("ms")).dt.timestamp("ms")
    return frame.with_columns((day + pl.col("timeframe").cast(pl.Int64, strict=False)).alias("eventdate + timeframe"))


def _products(frame: pl.LazyFrame) -> pl.LazyFrame:
    import polars as pl

    return frame.select("itemId", "pricelog2", name_tokens=pl.col("product.name.tokens").cast(pl.String).str.split(","))


def _named_by(item: str, mbid: str, *names: str) -> Derive:
    """Return a function that adds the column `item`: the MusicBrainz id or, where it is missing, the names."""

    def derive(frame: pl.LazyFrame) -> pl.LazyFrame:
        import polars as pl

        ids = pl.when(pl.col(mbid).str.len_bytes() > 0).then(pl.col(mbid))
        first, *others = (pl.col(name) for name in names)
        named = pl.concat_str(first, *(name.fill_null("") for name in others), separator=" / ")
        return frame.with_columns(pl.coalesce(ids, named).alias(item))

    return derive


def _music(item: str, mbid: str, *names: str, title: str) -> Derive:
    def derive(frame: pl.LazyFrame) -> pl.LazyFrame:
        import polars as pl

        found = _named_by(item, mbid, *names)(frame).filter(pl.col(item).is_not_null())
        return found.select(item, "artname", pl.col(title).alias("title")).unique(
            item, keep="first", maintain_order=True
        )

    return derive


_GROUPLENS = "https://files.grouplens.org/datasets/movielens/{}.zip"
_MOVIELENS = Declaration(
    "MovieLens: ratings of films",
    Files(("ratings.csv",), separator=","),
    user="userId",
    item="movieId",
    timestamp="timestamp",
    unit="seconds",
    items=(Files(("movies.csv",), key="movieId", separator=",", texts=("title", "genres"), derive=_films),),
    licence="research, non-commercial, no redistribution",
    place="https://grouplens.org/datasets/movielens",
)


def _movielens(size: str, md5: str, rows: int, users: int) -> Declaration:
    name = f"ml-{size.lower()}"
    counts = Counts(rows, users, origin=f"{name}-README.html of GroupLens")
    place, archive = _GROUPLENS.format(name), f"{name}.zip"
    return replace(_MOVIELENS, title=f"MovieLens {size}", counts=counts, place=place, archive=archive, md5=md5)


_AMAZON_2014 = "https://jmcauley.ucsd.edu/data/amazon"
_AMAZON_2023 = "https://amazon-reviews-2023.github.io"
_NO_LICENCE = "none stated; the publisher asks for citations"
_PRODUCTS_2014 = Files(
    ("meta_*.json",),
    key="asin",
    keys=("asin", "title", "brand", "price", "categories"),
    literals=True,
    missing_values=(),
    texts=("title", "brand"),
    derive=_lists("categories"),
)
_PRODUCTS_2023 = Files(
    ("meta_*.jsonl",),
    key="parent_asin",
    keys=("parent_asin", "title", "main_category", "store", "price", "categories"),
    missing_values=(),
    texts=("title", "main_category", "store"),
    derive=_lists("categories"),
)


def _yambda(size: str, rows: int | None, users: int, items: int) -> Declaration:
    return Declaration(
        f"Yambda {size}: listens, likes and dislikes of Yandex Music",
        Files(
            tuple(f"{folder}multi_event.parquet" for folder in ("", f"flat/{size}/", f"sequential/{size}/")),
            needs=("uid", "item_id", "timestamp"),
            derive=_sequences,
        ),
        user="uid",
        item="item_id",
        timestamp="timestamp",
        unit="seconds since the log began, in steps of 5",
        items=(Files(("embeddings.parquet",), key="item_id", up=3),),
        counts=Counts(rows, users, items, "table 1 of arXiv 2505.22238, as others quote it"),
        licence="Apache 2.0",
        place="https://huggingface.co/datasets/yandex/yambda",
    )


_LASTFM_COLUMNS = ("userid", "timestamp", "artid", "artname", "traid", "traname")
_LASTFM_FILE = "userid-timestamp-artid-artname-traid-traname.tsv"
_LASTFM_COUNTS = (19_150_868, 992)


def _lastfm(item: str, mbid: str, *names: str, title: str, artists: int | None = None) -> Declaration:
    log = Files((_LASTFM_FILE,), quote=None, header=_LASTFM_COLUMNS, missing_values=())
    return Declaration(
        f"Last.fm 1K: the listens of 992 people; items are {item}s",
        replace(log, needs=(mbid, *names), derive=_named_by(item, mbid, *names)),
        user="userid",
        item=item,
        timestamp="timestamp",
        unit="seconds",
        items=(replace(log, key=item, derive=_music(item, mbid, *names, title=title)),),
        users=(Files(("userid-profile.tsv",), key="#id", quote=None),),
        counts=Counts(*_LASTFM_COUNTS, artists, "README of the publisher"),
        licence="non-commercial use",
        place="http://ocelma.net/MusicRecommendationDataset/lastfm-1K.html, or https://zenodo.org/records/6090214",
        archive="lastfm-dataset-1K.tar.gz",
    )


PUBLIC_LOGS: dict[str, Declaration] = {
    "ml-20m": _movielens("20M", "cd245b17a1ae2cc31bb14903e1204af3", 20_000_263, 138_493),
    "ml-25m": _movielens("25M", "6b51fb2759a8657d3bfcbfc42b592ada", 25_000_095, 162_541),
    "ml-32m": _movielens("32M", "d472be332d4daa821edc399621853b57", 32_000_204, 200_948),
    "ml-latest": replace(_MOVIELENS, title="MovieLens Latest and Latest Small, which change", archive="ml-latest*.zip"),
    "amazon-2014": Declaration(
        "Amazon reviews of 2014, 5-core, one or several categories",
        Files(
            ("reviews_*_5.json",),
            keys=("reviewerID", "asin", "overall", "unixReviewTime"),
            missing_values=(),
        ),
        user="reviewerID",
        item="asin",
        timestamp="unixReviewTime",
        unit="seconds",
        items=(_PRODUCTS_2014,),
        licence=_NO_LICENCE,
        place=_AMAZON_2014,
    ),
    "amazon-2014-ratings": Declaration(
        "Amazon reviews of 2014, ratings only, one or several categories",
        Files(("ratings_*.csv",), header=("user", "item", "rating", "timestamp"), separator=",", derive=_users_first),
        user="user",
        item="item",
        timestamp="timestamp",
        unit="seconds",
        items=(_PRODUCTS_2014,),
        licence=_NO_LICENCE,
        place=_AMAZON_2014,
    ),
    "amazon-2023": Declaration(
        "Amazon reviews of 2023, one or several categories",
        Files(
            ("*.jsonl",),
            keys=("user_id", "parent_asin", "asin", "rating", "timestamp", "helpful_vote", "verified_purchase"),
            missing_values=(),
            texts=("asin",),
        ),
        user="user_id",
        item="parent_asin",
        timestamp="timestamp",
        unit="milliseconds",
        items=(_PRODUCTS_2023,),
        licence=_NO_LICENCE,
        place=_AMAZON_2023,
    ),
    "amazon-2023-ratings": Declaration(
        "Amazon reviews of 2023, ratings only (0-core or 5-core), one or several categories",
        Files(("*.csv",), separator=","),
        user="user_id",
        item="parent_asin",
        timestamp="timestamp",
        unit="milliseconds",
        items=(_PRODUCTS_2023,),
        licence=_NO_LICENCE,
        place=_AMAZON_2023,
    ),
    "steam": Declaration(
        "Steam reviews, version 2",
        Files(
            ("steam_reviews.json", "steam_new.json"),
            keys=("username", "product_id", "date", "hours", "early_access"),
            literals=True,
            missing_values=(),
        ),
        user="username",
        item="product_id",
        timestamp="date",
        unit="seconds; the file has days",
        items=(
            Files(
                ("steam_games.json",),
                key="id",
                keys=("id", "title", "app_name", "genres", "tags", "developer", "publisher", "release_date", "price"),
                literals=True,
                missing_values=(),
                texts=("title", "app_name", "developer", "publisher", "price"),
                derive=_games,
            ),
        ),
        counts=Counts(7_793_069, 2_567_538, origin="unverified: RecSysDatasets of RecBole"),
        licence=_NO_LICENCE,
        place="https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data",
    ),
    "yelp": Declaration(
        "Yelp reviews, Yelp Open Dataset",
        Files(
            ("yelp_academic_dataset_review.json", "review.json"),
            keys=("user_id", "business_id", "date", "stars", "useful", "funny", "cool"),
            missing_values=(),
        ),
        user="user_id",
        item="business_id",
        timestamp="date",
        unit="seconds",
        items=(
            Files(
                ("yelp_academic_dataset_business.json", "business.json"),
                key="business_id",
                keys=("business_id", "name", "city", "state", "latitude", "longitude", "categories"),
                missing_values=(),
                texts=("name", "city", "state"),
                derive=_businesses,
            ),
        ),
        counts=Counts(6_990_280, 1_987_929, 150_346, "unverified: RecSysDatasets of RecBole, release of 2022"),
        licence="Yelp's terms: academic use, no redistribution",
        place="https://www.yelp.com/dataset",
        archive="yelp_dataset.tar",
    ),
    "gowalla": Declaration(
        "Gowalla check-ins",
        Files(
            ("loc-gowalla_totalCheckins.txt", "Gowalla_totalCheckins.txt"),
            separator="\t",
            quote=None,
            header=("user", "check-in time", "latitude", "longitude", "location id"),
        ),
        user="user",
        item="location id",
        timestamp="check-in time",
        unit="seconds",
        counts=Counts(6_442_892, 107_092, 1_280_969, "unverified: loaders of LightGCN's family"),
        licence="none stated",
        place="https://snap.stanford.edu/data/loc-Gowalla.html",
    ),
    "lastfm-1k": _lastfm("track", "traid", "artname", "traname", title="traname"),
    "lastfm-1k-artists": _lastfm("artist", "artid", "artname", title="artname", artists=107_528 + 69_420),
    "yambda-50m": _yambda("50m", 47_790_449, 10_000, 934_057),
    "yambda-500m": _yambda("500m", None, 100_000, 3_004_578),
    "yambda-5b": _yambda("5b", None, 1_000_000, 9_390_623),
    "vk-lsvd": Declaration(
        "VK-LSVD: short videos shown in a feed of VK, the whole log or a subsample",
        Files(("*/week_*.parquet", "interactions/*/week_*.parquet", "week_*.parquet"), numbered=True),
        user="user_id",
        item="item_id",
        timestamp=None,
        unit="none: rows are in time order",
        items=(Files(("metadata/items_metadata.parquet",), key="item_id", up=3),),
        users=(Files(("metadata/users_metadata.parquet",), key="user_id", up=3),),
        licence="Apache 2.0",
        counts=Counts(40_774_024_903, 10_000_000, 19_627_601, "dataset card of the publisher; of the whole log"),
        place="https://huggingface.co/datasets/deepvk/VK-LSVD",
    ),
    "yoochoose": Declaration(
        "Yoochoose clicks, RecSys Challenge 2015; users are sessions",
        Files(
            ("yoochoose-clicks.dat",),
            separator=",",
            header=("session", "timestamp", "item", "category"),
            texts=("category",),
        ),
        user="session",
        item="item",
        timestamp="timestamp",
        unit="microseconds",
        counts=Counts(33_003_944, 9_249_729, 52_739, "unverified: RecSysDatasets of RecBole"),
        licence="CC BY-NC-ND 4.0, unverified",
        place="https://www.kaggle.com/datasets/chadgostopp/recsys-challenge-2015; unpack the .7z",
    ),
    "yoochoose-buys": Declaration(
        "Yoochoose purchases, RecSys Challenge 2015; users are sessions",
        Files(
            ("yoochoose-buys.dat",),
            separator=",",
            header=("session", "timestamp", "item", "price", "quantity"),
        ),
        user="session",
        item="item",
        timestamp="timestamp",
        unit="microseconds",
        counts=Counts(1_150_753, 509_696, 19_949, "unverified: RecSysDatasets of RecBole"),
        licence="CC BY-NC-ND 4.0, unverified",
        place="https://www.kaggle.com/datasets/chadgostopp/recsys-challenge-2015; unpack the .7z",
    ),
    "diginetica": Declaration(
        "Diginetica item views, CIKM Cup 2016; users are sessions",
        Files(
            ("train-item-views.csv",),
            separator=";",
            needs=("eventdate", "timeframe"),
            derive=_time_in_session,
        ),
        user="sessionId",
        item="itemId",
        timestamp="eventdate + timeframe",
        unit="milliseconds: the day, plus the time in the session",
        items=(
            Files(("products.csv",), key="itemId", separator=";", texts=("product.name.tokens",), derive=_products),
            Files(("product-categories.csv",), key="itemId", separator=";"),
        ),
        counts=Counts(1_235_380, 310_324, 122_993, "unverified: counted by users of the log"),
        licence="that of the competition; none stated in the files",
        place="https://competitions.codalab.org/competitions/11161",
    ),
}
