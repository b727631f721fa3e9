"""Each published log, opened from small files in its published format, and from files that are not."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import large_logs
import polars as pl
import pytest

from seqrec import PublicLog, Schema
from seqrec.data.prepare import Filters, prepare
from seqrec.data.sources.public_logs import PUBLIC_LOGS
from seqrec.errors import InputError, MissingInputError

Content = str | pl.DataFrame


@dataclass
class Sample:
    """Files of a log in its published format, and what they hold.

    `bad` is a row that is no event, after the others, and `named` is how it is named. `lacking` is the file of events
    without a column, and `lacks` is the column.
    """

    name: str
    text: Content
    events: list[tuple[Any, Any, int | None]]
    bad: Content
    named: str
    lacking: Content
    lacks: str
    columns: list[str] = field(default_factory=list)
    items: dict[str, Content] = field(default_factory=dict)
    item: dict[str, Any] = field(default_factory=dict)
    users: dict[str, Content] = field(default_factory=dict)
    user: dict[str, Any] = field(default_factory=dict)


def lines(*rows: dict[str, Any], python: bool = False) -> str:
    return "".join((repr(row) if python else json.dumps(row)) + "\n" for row in rows)


def without(text: str, name: str, other: str = "renamed") -> str:
    return text.replace(name, other)


RATINGS = (
    "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,3.5,1112484676\n2,2,4.0,974820889\n3,62,0.5,944919407\n"
)
MOVIES = (
    "movieId,title,genres\n"
    "2,Jumanji (1995),Adventure|Children|Fantasy\n"
    '29,"City of Lost Children, The (1995)",Drama\n'
    "62,X,(no genres listed)\n"
)
MOVIELENS = Sample(
    "ratings.csv",
    RATINGS,
    [(1, 2, 1112486027), (1, 29, 1112484676), (2, 2, 974820889), (3, 62, 944919407)],
    "3,,1.0,944919407\n",
    "line 6: item='movieId' expected an id, got nothing",
    without(RATINGS, "movieId"),
    "movieId",
    ["rating"],
    {"movies.csv": MOVIES},
    {"movieId": "2", "title": "Jumanji (1995)", "year": 1995, "genres": ["Adventure", "Children", "Fantasy"]},
)
REVIEWS_2014 = [
    {
        "reviewerID": user,
        "asin": item,
        "reviewerName": "x",
        "helpful": [0, 1],
        "reviewText": 'A "text" é',
        "overall": 5.0,
    }
    | {"summary": "s", "unixReviewTime": time, "reviewTime": "09 13, 2009"}
    for user, item, time in [
        ("A2S", "0013714", 1252800000),
        ("A2S", "B0X", 1252800001),
        ("B7", "B0X", 9),
        ("C", "B0X", 8),
    ]
]
META_2014 = lines(
    {"asin": "0013714", "title": 'It\'s a "book"', "price": 3.17, "categories": [["Books"], ["Books", "Music, old"]]},
    {"asin": "B0X", "brand": "Y", "categories": [[]]},
    python=True,
)
BOOK_2014 = {"asin": "0013714", "title": 'It\'s a "book"', "price": 3.17, "categories": ["Books", "Music, old"]}
META_2023 = lines(
    {"main_category": "All Beauty", "title": "Spray", "average_rating": 4.8, "price": None, "store": "H"}
    | {"categories": ["Beauty", "Hair"], "details": {"a": 1}, "parent_asin": "B1"},
    {"main_category": None, "title": "7", "price": 2.5, "categories": [], "parent_asin": "B2"},
)
SPRAY = {"parent_asin": "B1", "title": "Spray", "main_category": "All Beauty", "categories": ["Beauty", "Hair"]}
REVIEWS_2023 = [
    {"rating": 5.0, "title": "t", "text": "x", "images": [], "asin": "0071", "parent_asin": item, "user_id": user}
    | {"timestamp": time, "helpful_vote": 0, "verified_purchase": True}
    for user, item, time in [("AGK", "B1", 1588687728923), ("AGK", "B2", 1588615855070), ("B", "B1", 7), ("C", "B1", 6)]
]
RATINGS_2023 = (
    "user_id,parent_asin,rating,timestamp\nAGK,B1,5.0,1588687728923\nAGK,B2,4.0,1588615855070\nB,B1,1.0,7\nC,B2,2.0,9\n"
)
STEAM = [
    {"username": user, "hours": 6.8, "products": 41, "product_id": item, "page_order": 0, "date": day, "text": "it's"}
    | {"early_access": False, "page": 1}
    for user, item, day in [
        ("None", "725280", "2017-12-20"),
        ("é", "328100", "2018-01-02"),
        ("12", "328100", "2018-01-02"),
    ]
]
GAMES = lines(
    {"app_name": "Lost", "genres": ["Action", "Indie"], "title": "Lost Summoner", "id": "725280", "price": "Free"},
    {"app_name": "Real Pool", "id": "328100", "price": 4.99, "tags": ["Pool"]},
    {"app_name": "no id"},
    python=True,
)
YELP = [
    {"review_id": "K", "user_id": user, "business_id": "X-4", "stars": 3.0, "useful": 0, "funny": 0, "cool": 1}
    | {"text": "If you\ndecide", "date": date}
    for user, date in [("mh_", "2018-07-07 22:09:11"), ("OyoG", "2012-01-03 15:28:18"), ("8g_", "2014-02-05 20:30:30")]
]
BUSINESSES = lines(
    {"business_id": "X-4", "name": "Garaje", "city": "San Francisco", "state": "CA", "latitude": 37.5}
    | {"attributes": {"a": "b"}, "categories": "Mexican, Burgers"},
    {"business_id": "Y", "name": "1880", "city": "x", "categories": None},
)
GOWALLA = (
    "0\t2010-10-19T23:55:27Z\t30.2359091167\t-97.7951395833\t22847\n"
    "0\t2010-10-18T22:17:43Z\t30.26\t-97.74\t420315\n"
    "1\t2010-10-17T23:42:03Z\t30.2\t-97.7\t22847\n"
    "2\t2010-10-17T00:00:00Z\t30\t-97\t7\n"
)
LASTFM = (
    'user_000001\t2009-05-04T23:08:57Z\tf1b1\tDeep Dish\t\tFuck "Me\n'
    "user_000001\t2009-05-04T13:54:10Z\t\tNone\tc605\tSong\n"
    "user_000002\t2009-05-04T13:54:10Z\tf1b1\tDeep Dish\tab\tLive\n"
    "user_000003\t2009-05-04T13:54:10Z\tf1b1\tDeep Dish\tab\tLive\n"
)
PROFILES = (
    "#id\tgender\tage\tcountry\tregistered\n"
    "user_000001\tm\t\tJapan\tAug 13, 2006\n"
    "user_000002\tf\t22\tPeru\tFeb 24, 2006\n"
)
YAMBDA = pl.DataFrame(
    {
        "uid": pl.Series([10, 10, 20, 30], dtype=pl.UInt32),
        "timestamp": pl.Series([39420, 39425, 5, 0], dtype=pl.UInt32),
        "item_id": pl.Series([8326270, 1441281, 8326270, 7], dtype=pl.UInt32),
        "is_organic": pl.Series([0, 1, 1, 0], dtype=pl.UInt8),
        "played_ratio_pct": pl.Series([100, None, 90, 3], dtype=pl.UInt16),
        "track_length_seconds": pl.Series([170, None, 105, 9], dtype=pl.UInt32),
        "event_type": pl.Series(["listen", "like", "listen", "listen"], dtype=pl.Enum(["listen", "like", "dislike"])),
    }
)
EMBEDDINGS = pl.DataFrame(
    {
        "item_id": pl.Series([8326270, 7], dtype=pl.UInt32),
        "embed": [[0.5, 1.0], [2.0, 0.0]],
        "normalized_embed": [[0.4, 0.9], [1.0, 0.0]],
    }
)
VK = pl.DataFrame(
    {
        "user_id": pl.Series([4, 9, 4], dtype=pl.UInt32),
        "item_id": pl.Series([70, 71, 72], dtype=pl.UInt32),
        "place": pl.Series([0, 1, 2], dtype=pl.UInt8),
    }
    | {"timespent": pl.Series([255, 3, 0], dtype=pl.UInt8), "like": [True, False, False], "dislike": [False] * 3}
)
CLICKS = (
    "1,2014-04-07T10:51:09.277Z,214536502,0\n"
    "1,2014-04-07T10:54:09.868Z,214536500,0\n"
    "2,2014-04-07T13:56:37.614Z,214662742,S\n"
    "3,2014-04-07T13:57:19.373Z,214662742,0\n"
)
BUYS = (
    "420374,2014-04-06T18:44:58.314Z,214537888,12462,1\n"
    "420374,2014-04-06T18:44:58.325Z,214537850,10471,1\n"
    "281626,2014-04-06T09:40:13.032Z,214535653,1883,1\n"
    "420368,2014-04-04T06:13:28.848Z,214530572,6073,1\n"
)
VIEWS = (
    "sessionId;userId;itemId;timeframe;eventdate\n"
    "1;NA;81766;526309;2016-05-09\n"
    "1;NA;31331;1031018;2016-05-09\n"
    "2;7;81766;0;2016-05-10\n"
    "3;NA;5;10;2016-05-10\n"
)
DAY = 1_462_752_000_000


def yambda(size: str) -> Sample:
    return Sample(
        f"flat/{size}/multi_event.parquet",
        YAMBDA,
        [(10, 8326270, 39420), (10, 1441281, 39425), (20, 8326270, 5), (30, 7, 0)],
        YAMBDA.head(1).with_columns(item_id=pl.lit(None, pl.UInt32)),
        "row 5: item='item_id' expected an id, got nothing",
        YAMBDA.rename({"item_id": "track_id"}),
        "item_id",
        ["is_organic", "played_ratio_pct", "track_length_seconds", "event_type"],
        {"embeddings.parquet": EMBEDDINGS},
        {"item_id": 7, "embed": [2.0, 0.0]},
    )


def lastfm(items: list[str], item: dict[str, Any]) -> Sample:
    times = [1241478537, 1241445250, 1241445250, 1241445250]
    users = ["user_000001", "user_000001", "user_000002", "user_000003"]
    return Sample(
        "userid-timestamp-artid-artname-traid-traname.tsv",
        LASTFM,
        list(zip(users, items, times, strict=True)),
        "user_000003\tyesterday\tf1b1\tDeep Dish\tab\tLive\n",
        "line 5: timestamp='timestamp' expected a time like 2009-05-04T23:08:57Z, got 'yesterday'",
        without(LASTFM, "\t\tFuck", "\tFuck").replace("c605\t", "").replace("ab\t", ""),
        "5 columns",
        ["artid", "artname", "traid", "traname"],
        {},
        item,
        {"userid-profile.tsv": PROFILES},
        {"#id": "user_000002", "gender": "f", "age": 22},
    )


def movielens() -> Sample:
    return MOVIELENS


SAMPLES: dict[str, Callable[[], Sample]] = {
    "ml-20m": movielens,
    "ml-25m": movielens,
    "ml-32m": movielens,
    "ml-latest": movielens,
    "amazon-2014": lambda: Sample(
        "reviews_Beauty_5.json",
        lines(*REVIEWS_2014),
        [("A2S", "0013714", 1252800000), ("A2S", "B0X", 1252800001), ("B7", "B0X", 9), ("C", "B0X", 8)],
        '{"reviewerID": "C", "asin": \n',
        'line 5: expected a JSON object, got \'{"reviewerID": "C", "asin":\'',
        without(lines(*REVIEWS_2014), "asin"),
        "asin",
        ["overall"],
        {"meta_Beauty.json": META_2014},
        BOOK_2014,
    ),
    "amazon-2014-ratings": lambda: Sample(
        "ratings_Beauty.csv",
        "A39H,0205616461,5.0,1369699200\nA3JM,0558925278,3.0,1355443200\nA39H,B0X,4.0,7\nC,B0X,1.0,8\n",
        [("A39H", "0205616461", 1369699200), ("A3JM", "0558925278", 1355443200), ("A39H", "B0X", 7), ("C", "B0X", 8)],
        "C,B0X,1.0,8,9\n",
        "line 5: expected 4 fields, got 5",
        "A39H,0205616461,5.0\nC,B0X,1.0\n",
        "3 columns",
        ["rating"],
        {"meta_Beauty.json": META_2014},
        BOOK_2014,
    ),
    "amazon-2023": lambda: Sample(
        "All_Beauty.jsonl",
        lines(*REVIEWS_2023),
        [("AGK", "B1", 1588687728923), ("AGK", "B2", 1588615855070), ("B", "B1", 7), ("C", "B1", 6)],
        lines({"user_id": "C", "parent_asin": "B1", "timestamp": None}),
        "line 5: timestamp='timestamp' expected a number, got nothing",
        without(lines(*REVIEWS_2023), "timestamp"),
        "timestamp",
        ["asin", "rating", "helpful_vote", "verified_purchase"],
        {"meta_All_Beauty.jsonl": META_2023},
        SPRAY,
    ),
    "amazon-2023-ratings": lambda: Sample(
        "All_Beauty.csv",
        RATINGS_2023,
        [("AGK", "B1", 1588687728923), ("AGK", "B2", 1588615855070), ("B", "B1", 7), ("C", "B2", 9)],
        ",B1,1.0,7\n",
        "line 6: user='user_id' expected an id, got nothing",
        without(RATINGS_2023, "user_id"),
        "user_id",
        ["rating"],
        {"meta_All_Beauty.jsonl": META_2023},
        SPRAY,
    ),
    "steam": lambda: Sample(
        "steam_reviews.json",
        lines(*STEAM, python=True).replace("{'", "{u'"),
        [("None", 725280, 1513728000), ("é", 328100, 1514851200), ("12", 328100, 1514851200)],
        "{u'username': u'x', u'product_id': \n",
        "line 4: expected a JSON object, got \"{u'username': u'x', u'product_id':\"",
        without(lines(*STEAM, python=True), "product_id"),
        "product_id",
        ["hours", "early_access"],
        {"steam_games.json": GAMES},
        {"id": "725280", "title": "Lost Summoner", "genres": ["Action", "Indie"]},
    ),
    "yelp": lambda: Sample(
        "yelp_academic_dataset_review.json",
        lines(*YELP),
        [("mh_", "X-4", 1531001351), ("OyoG", "X-4", 1325604498), ("8g_", "X-4", 1391632230)],
        "not json\n",
        "line 4: expected a JSON object, got 'not json'",
        without(lines(*YELP), "business_id"),
        "business_id",
        ["stars", "useful", "funny", "cool"],
        {"yelp_academic_dataset_business.json": BUSINESSES},
        {"business_id": "X-4", "title": "Garaje", "categories": ["Mexican", "Burgers"]},
    ),
    "gowalla": lambda: Sample(
        "loc-gowalla_totalCheckins.txt",
        GOWALLA,
        [(0, 22847, 1287532527), (0, 420315, 1287440263), (1, 22847, 1287358923), (2, 7, 1287273600)],
        "2\tnever\t30\t-97\t7\n",
        "line 5: timestamp='check-in time' expected a time like 2010-10-19T23:55:27Z, got 'never'",
        "0\t2010-10-19T23:55:27Z\t22847\n",
        "3 columns",
        ["latitude", "longitude"],
    ),
    "lastfm-1k": lambda: lastfm(
        ['Deep Dish / Fuck "Me', "c605", "ab", "ab"], {"track": "ab", "title": "Live", "artname": "Deep Dish"}
    ),
    "lastfm-1k-artists": lambda: lastfm(["f1b1", "None", "f1b1", "f1b1"], {"artist": "f1b1", "title": "Deep Dish"}),
    "yambda-50m": lambda: yambda("50m"),
    "yambda-500m": lambda: yambda("500m"),
    "yambda-5b": lambda: yambda("5b"),
    "vk-lsvd": lambda: Sample(
        "interactions/train/week_00.parquet",
        VK,
        [(4, 70, None), (9, 71, None), (4, 72, None)],
        VK.head(1).with_columns(user_id=pl.lit(None, pl.UInt32)),
        "row 4: user='user_id' expected an id, got nothing",
        VK.drop("item_id"),
        "item_id",
        ["place", "timespent", "like", "dislike"],
        {"metadata/items_metadata.parquet": pl.DataFrame({"item_id": [70], "author_id": [5], "duration": [30]})},
        {"item_id": 70, "author_id": 5, "duration": 30},
        {"metadata/users_metadata.parquet": pl.DataFrame({"user_id": [4], "age": [33], "gender": [1], "geo": [2]})},
        {"user_id": 4, "age": 33},
    ),
    "yoochoose": lambda: Sample(
        "yoochoose-clicks.dat",
        CLICKS,
        [
            *((1, 214536502, 1396867869277000), (1, 214536500, 1396868049868000)),
            *((2, 214662742, 1396878997614000), (3, 214662742, 1396879039373000)),
        ],
        "3,2014-04-07T13:57:19.373Z,,0\n",
        "line 5: item='item' expected an id, got nothing",
        without(CLICKS, ",0\n", "\n").replace(",S", ""),
        "3 columns",
        ["category"],
    ),
    "yoochoose-buys": lambda: Sample(
        "yoochoose-buys.dat",
        BUYS,
        [
            *((420374, 214537888, 1396809898314000), (420374, 214537850, 1396809898325000)),
            *((281626, 214535653, 1396777213032000), (420368, 214530572, 1396592008848000)),
        ],
        "420368,,214530572,6073,1\n",
        "line 5: timestamp='timestamp' expected a time like 2014-04-06T18:44:58.314Z, got nothing",
        without(BUYS, ",1\n", "\n"),
        "4 columns",
        ["price", "quantity"],
    ),
    "diginetica": lambda: Sample(
        "train-item-views.csv",
        VIEWS,
        [(1, 81766, DAY + 526309), (1, 31331, DAY + 1031018), (2, 81766, DAY + 86_400_000), (3, 5, DAY + 86_400_010)],
        "3;NA;5;10;09.05.2016\n",
        r"line 6: timestamp='eventdate + timeframe' expected a number, got nothing",
        without(VIEWS, "timeframe"),
        "timeframe",
        ["userId", "timeframe", "eventdate"],
        {
            "products.csv": "itemId;pricelog2;product.name.tokens\n81766;11;4875,776\n5;3;12\n",
            "product-categories.csv": "itemId;categoryId\n81766;1096\n5;3\n",
        },
        {"itemId": "81766", "pricelog2": 11, "name_tokens": ["4875", "776"]},
    ),
}
MUSIC = SAMPLES["lastfm-1k"]()
logs = pytest.mark.parametrize("log", PUBLIC_LOGS)
# Sizes of logs whose format another log has, too.
SIZES = ("ml-20m", "ml-25m", "ml-latest", "yambda-500m", "yambda-5b")
formats = pytest.mark.parametrize("log", [log for log in PUBLIC_LOGS if log not in SIZES])


def write(file: Path, content: Content) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pl.DataFrame):
        content.write_parquet(file)
    elif file.suffix == ".gz":
        file.write_bytes(gzip.compress(content.encode()))
    else:
        file.write_text(content, encoding="utf-8")
    return file


def written(folder: Path, log: str, *, text: Content | None = None) -> Sample:
    """Write the sample of a log, perhaps with other events."""
    assert log in SAMPLES, f"give a sample of {log} above"
    sample = SAMPLES[log]()
    write(folder / sample.name, sample.text if text is None else text)
    for name, content in (sample.items | sample.users).items():
        write(folder / name, content)
    return sample


def more(content: Content, row: Content) -> Content:
    if isinstance(content, pl.DataFrame):
        return pl.concat([content, row])
    assert isinstance(row, str)
    return content + row


def events_of(source: PublicLog) -> list[tuple[Any, Any, int | None]]:
    frame = source.scan().collect(engine="streaming")
    times = frame["timestamp"] if "timestamp" in frame.columns else [None] * len(frame)
    return list(zip(frame["user_id"], frame["item_id"], times, strict=True))


def refused(source: PublicLog, folder: Path, match: str, **schema: dict[str, str]) -> None:
    """Preparing is refused, and leaves nothing."""
    with pytest.raises(InputError, match=match):
        prepare(source, Filters(), folder / "store", schema=Schema(**schema))
    assert not [path for path in folder.iterdir() if path.name.startswith("store")]


@logs
def test_a_folder_of_published_files_is_read(log: str, tmp_path: Path):
    sample = written(tmp_path / "log", log)
    source = PublicLog(log, str(tmp_path / "log"))
    assert events_of(source) == sample.events
    assert source.num_rows == len(sample.events)
    features = [name for name in source.scan().collect_schema() if name not in ("user_id", "item_id", "timestamp")]
    assert features == sample.columns
    for group, row in (("items", sample.item), ("users", sample.user)):
        found = [
            row.items() <= each.items()
            for table in source.tables(group)
            if row
            for each in table.frame.collect().rows(named=True)
        ]
        assert found.count(True) == bool(row)
        assert [file.name for file in source.table_files(group)] == [Path(name).name for name in getattr(sample, group)]


@formats
class TestEachFormat:
    def test_a_file_alone_is_read(self, log: str, tmp_path: Path):
        sample = written(tmp_path, log)
        assert events_of(PublicLog(log, str(tmp_path / sample.name))) == sample.events

    def test_a_bad_row_is_named_or_left_out(self, log: str, tmp_path: Path):
        sample = SAMPLES[log]()
        written(tmp_path / "log", log, text=more(sample.text, sample.bad))
        source = PublicLog(log, str(tmp_path / "log"), max_bad_share=0.5)
        assert events_of(source) == sample.events
        assert [left.count for left in source.malformed] == [1]
        with pytest.raises(InputError) as error:
            PublicLog(log, str(tmp_path / "log")).scan()
        assert sample.named in str(error.value)
        assert Path(sample.name).name in str(error.value)
        refused(PublicLog(log, str(tmp_path / "log")), tmp_path, "malformed")

    def test_a_missing_column_is_named(self, log: str, tmp_path: Path):
        sample = SAMPLES[log]()
        written(tmp_path / "log", log, text=sample.lacking)
        names_column = f"(has no column '{sample.lacks}'; it has .*|has {sample.lacks}, but).*"
        refused(PublicLog(log, str(tmp_path / "log")), tmp_path, Path(sample.name).name + " " + names_column)

    def test_a_truncated_file_is_named(self, log: str, tmp_path: Path):
        sample = SAMPLES[log]()
        name = sample.name if isinstance(sample.text, pl.DataFrame) else f"{sample.name}.gz"
        file = write(tmp_path / "log" / name, sample.text)
        file.write_bytes(file.read_bytes()[:-12])
        refused(PublicLog(log, str(tmp_path / "log")), tmp_path, f"{file.name} cannot be read")

    def test_what_is_not_there_is_named_with_where_to_get_it(self, log: str, tmp_path: Path):
        declared = PUBLIC_LOGS[log]
        with pytest.raises(MissingInputError, match=r"no .* in this folder; .*https?://"):
            PublicLog(log, str(tmp_path)).scan()
        with pytest.raises(MissingInputError, match=r"none': no such file; .*https?://"):
            PublicLog(log, str(tmp_path / "none")).files()
        sample = SAMPLES[log]()
        if sample.items:
            write(tmp_path / sample.name, sample.text)
            with pytest.raises(
                MissingInputError, match=f"schema.items needs {declared.items[0].names[0]}".replace("*", r"\*")
            ):
                PublicLog(log, str(tmp_path)).tables("items")


@pytest.mark.parametrize(
    ("log", "name", "text", "match"),
    [
        (
            "ml-32m",
            "ratings.csv",
            "1::1193::5::978300760\n",
            "has no column 'userId'; it has 1::1193::5::978300760; is",
        ),
        ("amazon-2023", "Beauty.jsonl", lines(*REVIEWS_2014), "no column 'user_id'; .* of amazon-2023 as it is publ"),
        ("amazon-2014", "reviews_Beauty_5.json", lines(*REVIEWS_2023), "no column 'reviewerID'; it has rating, title"),
        (
            "amazon-2014-ratings",
            "ratings_Beauty.csv",
            "B00005N7P0,AH2IFH762VY5U,5.0,1005177600\n",
            ": its items come first, as",
        ),
        ("amazon-2014-ratings", "ratings_Beauty.csv", RATINGS_2023, "line 1: timestamp='timestamp' expected a number"),
        (
            "steam",
            "steam_reviews.json",
            repr({"user_id": "a", "items": []}),
            "no column 'username'; it has none that is",
        ),
        ("lastfm-1k", "log.tsv", "00000c\t3bd73256\tbetty blowtorch\t2137\n", "has 4 columns, but header names 6"),
        ("yoochoose", "yoochoose-clicks.dat", BUYS, "has 5 columns, but header names 4"),
        ("yoochoose", "yoochoose-data.7z", "7z", "is an archive that is not read: unpack it, and give the folder"),
        (
            "diginetica",
            "train-item-views.csv",
            VIEWS.replace(";", ","),
            "no column 'eventdate'; it has sessionId,userId",
        ),
    ],
)
def test_a_file_of_another_version_or_log_is_named(log: str, name: str, text: str, match: str, tmp_path: Path):
    source = PublicLog(log, str(write(tmp_path / name, text)))
    with pytest.raises(InputError, match=match) as error:
        source.scan()
    assert name in str(error.value)


@logs
def test_the_docstring_and_the_guide_name_it(log: str):
    assert f"`{log}`" in (PublicLog.__doc__ or "")
    guide = Path(__file__).parents[2] / "notebooks/guide/data.md"
    assert f"| `{log}` |" in guide.read_text(encoding="utf-8")


def test_an_unknown_log_is_refused():
    with pytest.raises(InputError, match=r"log='ml-20n' must be one of ml-20m, .*; did you mean ml-20m"):
        PublicLog("ml-20n")


def test_a_log_without_download_needs_a_path():
    with pytest.raises(
        InputError, match=r"log='yelp' has no download: get its files at https://www\.yelp\.com/dataset and"
    ):
        PublicLog("yelp")


class TestArchives:
    def zipped(self, file: Path, **members: str) -> Path:
        with zipfile.ZipFile(file, "w") as archive:
            for name, text in members.items():
                archive.writestr(f"ml-32m/{name}.csv", text)
        return file

    def packed(self, file: Path) -> Path:
        with tarfile.open(file, "w:gz") as archive:
            for name, text in {"README.txt": "x", MUSIC.name: MUSIC.text, "userid-profile.tsv": PROFILES}.items():
                assert isinstance(text, str)
                member = tarfile.TarInfo(f"lastfm-dataset-1K/{name}")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
        return file

    def test_log_and_tables_are_read_from_a_zip_file_and_from_the_folder_of_downloads(self, tmp_path: Path):
        self.zipped(tmp_path / "ml-32m.zip", ratings=RATINGS, movies=MOVIES, tags="userId\n")
        for source in (
            PublicLog("ml-32m", str(tmp_path / "ml-32m.zip")),
            PublicLog("ml-32m", str(tmp_path)),
            PublicLog("ml-32m", download_dir=str(tmp_path)),
        ):
            assert events_of(source) == MOVIELENS.events
            (films,) = source.tables("items")
            assert films.frame.collect()["title"].to_list() == [
                "Jumanji (1995)",
                "City of Lost Children, The (1995)",
                "X",
            ]
            assert source.table_files("items") == []

    def test_log_and_tables_are_read_from_a_tar_file(self, tmp_path: Path):
        source = PublicLog("lastfm-1k", str(self.packed(tmp_path / "lastfm.tar.gz")))
        assert events_of(source) == MUSIC.events
        assert len(source.tables("items")[0].frame.collect()) == 3
        assert source.tables("users")[0].frame.collect()["country"].to_list() == ["Japan", "Peru"]

    def test_errors_name_the_file_in_the_archive(self, tmp_path: Path):
        file = self.zipped(tmp_path / "a.zip", ratings=RATINGS + "1,,3.0,7\n")
        refused(
            PublicLog("ml-32m", str(file)), tmp_path, r"a\.zip/ml-32m/ratings\.csv: 1 of 5 .* line 6: item='movieId'"
        )

    @pytest.mark.parametrize("log", ["ml-32m", "lastfm-1k"])
    def test_a_truncated_archive_is_named(self, log: str, tmp_path: Path):
        zipped = log == "ml-32m"
        file = self.zipped(tmp_path / "a.zip", ratings=RATINGS) if zipped else self.packed(tmp_path / "a.tgz")
        file.write_bytes(file.read_bytes()[:-40])
        refused(PublicLog(log, str(file)), tmp_path, r"a\.\w+ cannot be unpacked: ")

    def test_an_archive_of_something_else_is_named(self, tmp_path: Path):
        file = self.zipped(tmp_path / "a.zip", movies=MOVIES)
        refused(
            PublicLog("ml-32m", str(file)), tmp_path, r"a\.zip contains no ratings\.csv; leave path out to download"
        )


class TestAmazon:
    def test_categories_in_one_folder_are_one_log_with_the_products_of_all(self, tmp_path: Path):
        reviews = REVIEWS_2014[0] | {"reviewerID": "D", "asin": "T0"}
        write(tmp_path / "reviews_Toys_5.json.gz", lines(reviews))
        write(tmp_path / "meta_Toys.json.gz", lines({"asin": "T0", "title": "Toy"}, python=True))
        sample = written(tmp_path, "amazon-2014")
        source = PublicLog("amazon-2014", str(tmp_path))
        assert events_of(source) == [*sample.events, ("D", "T0", 1252800000)]
        assert source.tables("items")[0].frame.collect()["asin"].to_list() == ["0013714", "B0X", "T0"]
        # Its own, unpacked.
        write(tmp_path / "reviews_Toys_5.json", lines(reviews))
        assert len(events_of(PublicLog("amazon-2014", str(tmp_path)))) == 5
        source = PublicLog("amazon-2014", str(tmp_path / "reviews_T*.json.gz"))
        assert source.tables("items")[0].frame.collect()["title"].to_list() == ["Toy"]

    def test_an_item_table_without_titles_is_named(self, tmp_path: Path):
        written(tmp_path / "log", "amazon-2023")
        write(tmp_path / "log/meta_All_Beauty.jsonl", lines({"parent_asin": "B1", "store": "x"}))
        source = PublicLog("amazon-2023", str(tmp_path / "log"))
        match = r"schema\.items: no column 'title' in .*meta_All_Beauty\.jsonl; columns: store"
        refused(source, tmp_path, match, items={"title": "categorical"})

    def test_a_bad_row_of_the_products_is_named(self, tmp_path: Path):
        written(tmp_path / "log", "amazon-2023")
        write(tmp_path / "log/meta_All_Beauty.jsonl", META_2023 + "\n{'parent_asin'}\n")
        source = PublicLog("amazon-2023", str(tmp_path / "log"))
        match = r"meta_All_Beauty\.jsonl line 4: expected a JSON object, got \"\{'parent_asin'\}\""
        refused(source, tmp_path, match, items={"title": "categorical"})

    def test_products_are_columns_of_the_store(self, tmp_path: Path):
        written(tmp_path / "log", "amazon-2023")
        schema = Schema(events={"rating": "numeric"}, items={"title": "categorical", "categories": "categories"})
        store = prepare(PublicLog("amazon-2023", str(tmp_path / "log")), Filters(), tmp_path / "store", schema=schema)
        titles = store.item_columns["title"]
        assert [titles.vocabulary.external_ids([code])[0] for code in titles.values[1:]] == ["Spray", "7"]
        assert store.manifest["notes"] == []

    def test_blank_lines_and_lines_that_are_no_objects_keep_the_others_lines(self, tmp_path: Path):
        texts = lines(*REVIEWS_2023).splitlines()
        write(tmp_path / "All_Beauty.jsonl", "\n".join([texts[0], "", "[1]", texts[1], '"x"', " ", *texts[2:], "{}"]))
        source = PublicLog("amazon-2023", str(tmp_path), max_bad_share=0.5)
        assert events_of(source) == SAMPLES["amazon-2023"]().events
        assert [place.split(",")[0] for place in source.malformed[0].places] == [
            "line 3: expected a JSON object",
            "line 5: expected a JSON object",
            "line 9: user='user_id' expected an id",
        ]


class TestYambda:
    def test_lists_of_events_are_the_same_log(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        # A slice a user.
        monkeypatch.setattr("seqrec.data.sources.exploding._EVENTS_IN_SLICE", 1)
        lists = YAMBDA.group_by("uid", maintain_order=True).all()
        empty = lists.head(1).with_columns(pl.exclude("uid").list.head(0), uid=pl.lit(99, pl.UInt32))
        lists = pl.concat([lists, empty])
        write(tmp_path / "sequential/50m/multi_event.parquet", lists)
        source, flat = PublicLog("yambda-50m", str(tmp_path)), written(tmp_path / "flat", "yambda-50m")
        assert events_of(source) == flat.events
        frame = PublicLog("yambda-50m", str(tmp_path / "flat")).scan().collect()
        assert source.scan().collect().equals(frame)
        assert source.scan().filter(pl.col("item_id") > 7).select("user_id").collect().height == 3

    def test_other_counts_than_the_published_are_noted(self, tmp_path: Path):
        sample = written(tmp_path / "log", "yambda-50m")
        store = prepare(PublicLog("yambda-50m", str(tmp_path / "log")), Filters(), tmp_path / "store")
        (note,) = store.manifest["notes"]
        assert note.startswith("yambda-50m: 4 rows, published are 47,790,449; 3 users, published are 10,000; 3 items, ")
        file = (tmp_path / "log" / sample.name).rename(tmp_path / "listens.parquet")
        store = prepare(PublicLog("yambda-50m", str(file)), Filters(), tmp_path / "other")
        assert store.manifest["notes"] == []


class TestVKLSVD:
    def test_weeks_are_read_in_their_order(self, tmp_path: Path):
        for number, part in enumerate(["train", "train", "validation", "test"]):
            write(
                tmp_path / f"subsamples/ur0.01/{part}/week_{number:02}.parquet", VK.with_columns(item_id=pl.lit(number))
            )
        events = events_of(PublicLog("vk-lsvd", str(tmp_path / "subsamples/ur0.01")))
        assert [item for _, item, _ in events] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]

    def test_a_missing_week_is_named(self, tmp_path: Path):
        for number in (0, 2):
            write(tmp_path / f"log/train/week_{number:02}.parquet", VK)
        match = r"the part before week_02\.parquet is missing, as parts 0 and 2 are there"
        refused(PublicLog("vk-lsvd", str(tmp_path / "log")), tmp_path, match)
        assert len(events_of(PublicLog("vk-lsvd", str(tmp_path / "log/train/week_*.parquet")))) == 6

    def test_two_subsamples_are_not_one_log(self, tmp_path: Path):
        for name in ("ur0.01", "ir0.01"):
            write(tmp_path / f"log/{name}/train/week_00.parquet", VK)
        refused(
            PublicLog("vk-lsvd", str(tmp_path / "log")), tmp_path, "is not the only week_00.parquet; give the folder"
        )


@pytest.mark.parametrize(("log", "sample"), [("yambda-5b", YAMBDA), ("vk-lsvd", VK)])
def test_large_logs_are_generated_in_the_published_format(log: str, sample: pl.DataFrame, tmp_path: Path):
    large_logs.write(log, tmp_path / ("multi_event.parquet" if log == "yambda-5b" else "interactions"), 1000)
    found = pl.read_parquet_schema(next(tmp_path.rglob("*.parquet")))
    assert {name: dtype.base_type() for name, dtype in found.items()} == {
        name: dtype.base_type() for name, dtype in sample.schema.items()
    }
    assert len(events_of(PublicLog(log, str(tmp_path)))) == 1000


MEASURED = r"""
import re, sys
from seqrec import PublicLog
from seqrec.data.prepare import Filters, prepare
store = prepare(PublicLog(*sys.argv[1:3]), Filters(), sys.argv[3])
# `getrusage` would also count the memory of the process that started this one.
print(store.num_events, int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json", "json.gz", "flat", "sequential"])
def test_memory_does_not_grow_with_rows(tmp_path: Path, form: str):
    """Preparing 2 million reviews (1.1 GB), or 20 million listens, takes less than 500 MiB in all."""
    users, length = 2_000, 1_000 if "json" in form else 10_000
    with ExitStack() as stack:
        if "json" in form:
            file = tmp_path / f"All.jsonl{form[4:]}"
            out = (
                stack.enter_context(gzip.open(file, "wb", 1)) if "gz" in form else stack.enter_context(file.open("wb"))
            )
            for user in range(users):
                rows = pl.DataFrame({"user_id": f"AG{user:025}", "parent_asin": pl.int_range(length, eager=True)})
                rows = rows.with_columns(timestamp=pl.int_range(length) + 10**12, text=pl.lit("lorem ipsum " * 40))
                rows.write_ndjson(out)
        else:
            events = pl.int_range(users * length, eager=True, dtype=pl.UInt32)
            frame = pl.DataFrame({"uid": events // length, "timestamp": events % length, "item_id": events % 65_537})
            frame = frame if form == "flat" else frame.group_by("uid", maintain_order=True).all()
            frame.write_parquet(tmp_path / "multi_event.parquet", row_group_size=100_000 if form == "flat" else 100)
    log = "amazon-2023" if "json" in form else "yambda-50m"
    command = [sys.executable, "-c", MEASURED, log, str(tmp_path), str(tmp_path / "store")]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    events_read, mebibytes = map(int, process.stdout.split())
    assert events_read == users * length
    assert mebibytes < 500
