"""The page's API over HTTP: what programs call, alone and many at once."""

import concurrent.futures
import http.client

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from magicedit.editor import ExpressionEditor


@pytest.fixture(scope="module")
def client(address) -> Client:
    return Client(address, verbose=False)


@pytest.fixture(scope="module")
def editor() -> ExpressionEditor:
    return ExpressionEditor.from_pretrained("mini")


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_an_edit_is_the_librarys(client, editor, photographs):
    edited, report = client.predict(handle_file(photographs / "one.png"), "AU12=-3", api_name="/edit")
    expected = editor.edit(photographs / "one.png", add="AU12=-3")
    assert np.array_equal(pixels(edited), np.asarray(expected.image))
    assert report["model"] == "mini"
    assert report["faces"] == [face.to_json() for face in expected.faces]


def test_every_argument_arrives(client, editor, photographs):
    photo = photographs / "two.png"
    edited, report = client.predict(
        photo=handle_file(photo),
        add="AU4=2",
        set="AU12=0",
        emotion="surprise:0.5",
        face="1",
        quality="fast",
        seed=5,
        api_name="/edit",
    )
    expected = editor.edit(
        photo, add="AU4=2", set="AU12=0", emotion="surprise:0.5", face=1, quality="fast", seed=5
    )
    assert np.array_equal(pixels(edited), np.asarray(expected.image))
    assert len(report["faces"]) == 1
    _, report = client.predict(
        handle_file(photographs / "one.png"), neutral=True, tolerance=0.3, api_name="/edit"
    )
    assert report["faces"][0]["requested"]["AU12"] < -4
    assert "reached" in report["faces"][0]


def test_measure(client, editor, photographs):
    faces = client.predict(handle_file(photographs / "two.png"), api_name="/measure")["faces"]
    for face, expected in zip(faces, editor.measure(photographs / "two.png"), strict=True):
        assert face["action_units"]["AU12"] == round(expected.action_units["AU12"], 3)
    counted = [(face["face"], face["number"]) for face in faces]
    assert counted == [(0, 1), (1, 2)]
    _, report = client.predict(
        handle_file(photographs / "two.png"), "AU12=1", face="1", quality="live", api_name="/edit"
    )
    (edited,) = report["faces"]
    assert (edited["face"], edited["number"], edited["box"]) == (*counted[1], faces[1]["box"])


@pytest.mark.parametrize(
    ("name", "add", "message"),
    [
        ("grey.png", "AU12=1", "no face was found in grey.png"),
        ("broken.jpg", "AU12=1", "broken.jpg is not an image"),
        ("one.png", "AU99=1", "unknown action unit 'AU99'"),
        ("one.png", "AU12=99", "between -10 and 10"),
    ],
)
def test_errors_arrive_as_sentences_and_the_server_goes_on(client, photographs, name, add, message):
    with pytest.raises(AppError, match=message):
        client.predict(handle_file(photographs / name), add, api_name="/edit")
    assert client.predict(handle_file(photographs / "one.png"), "AU12=-1", api_name="/edit")


def raw_call(address: str, data: list) -> str:
    """What the server answers to a call that no client library would make."""
    event = httpx.post(f"{address}/gradio_api/call/edit", json={"data": data}).json()["event_id"]
    return httpx.get(f"{address}/gradio_api/call/edit/{event}", timeout=60).text


def test_paths_that_were_not_uploaded_are_refused(address, photographs):
    for place in ("/etc/passwd", str(photographs / "one.png"), "../../../../etc/passwd"):
        photo = {"path": place, "meta": {"_type": "gradio.FileData"}}
        answer = raw_call(address, [photo, "AU12=1", "", "", False, "all", "", 0, 0])
        assert answer.startswith("event: error")
        assert "was not uploaded by a user" in answer or "InvalidPathError" in answer, answer
        assert (photographs / "one.png").is_file()
    assert httpx.get(f"{address}/gradio_api/file=/etc/passwd").status_code == 403
    assert httpx.get(f"{address}/gradio_api/file={photographs / 'one.png'}").status_code == 403


def test_uploads_beyond_the_limit_are_refused(address):
    host, port = address.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=part")
    connection.putheader("Content-Length", str(257 * 2**20))
    connection.endheaders()  # answered by what is announced, before anything is sent
    assert connection.getresponse().status == 413
    connection.close()


def test_ten_edits_of_each_of_four_clients_are_answered_in_order_and_not_mixed_up(
    address, editor, photographs
):
    """Each client asks for its own unit, ten times, some with the same photograph at the same moment."""
    units = ("AU12", "AU4", "AU1", "AU26")
    values = [round(-2.0 + 0.4 * number, 1) for number in range(10)]
    names = ("one.png", "one.png", "two.png", "one.png")

    def work(unit: str, name: str) -> list:
        client = Client(address, verbose=False)
        jobs = [
            client.submit(
                handle_file(photographs / name), f"{unit}={value}", face="0", quality="live", api_name="/edit"
            )
            for value in values
        ]
        return [job.result(timeout=120) for job in jobs]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(work, units, names))
    for unit, name, results in zip(units, names, answers, strict=True):
        asked = [result[1]["faces"][0]["requested"] for result in results]
        assert asked == [{unit: value} for value in values]
        for number in (0, 9):
            expected = editor.edit(photographs / name, {unit: values[number]}, face=0, quality="live")
            assert np.array_equal(pixels(results[number][0]), np.asarray(expected.image))
