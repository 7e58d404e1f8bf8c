"""An app of ten routes, as FastAPI's own documentation would have it."""

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from pydantic import BaseModel
from starlette.middleware.sessions import SessionMiddleware

HERE = Path(__file__).parent.parent / "plain"
SECRET = b"ten routes, one secret"


class Book(BaseModel):
    id: int
    title: str


class OutOfPrint(Exception):
    pass


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
    app.state.shelf = {1: "Emma", 2: "Persuasion", 3: "Lady Susan"}
    yield {"greeting": "Good day"}
    app.state.shelf = {}


app = FastAPI(title="Books", lifespan=lifespan)
app.add_middleware(SessionMiddleware, secret_key="of the sessions")
app.add_middleware(CORSMiddleware, allow_origins=["https://books.example"], allow_credentials=True)
app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
templates = Jinja2Templates(directory=HERE / "templates")
asked: list[int] = []


@app.exception_handler(OutOfPrint)
async def out_of_print(request: Request, error: OutOfPrint) -> JSONResponse:
    return JSONResponse({"reason": "out of print"}, 410)


def signed(claims: dict[str, str]) -> str:
    head, body = (base64.urlsafe_b64encode(json.dumps(each).encode()) for each in ({"alg": "HS256"}, claims))
    signature = hmac.new(SECRET, head + b"." + body, hashlib.sha256).digest()
    return b".".join((head, body, base64.urlsafe_b64encode(signature))).decode()


def reader(bearer: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    try:
        name = str(json.loads(base64.urlsafe_b64decode(bearer.credentials.split(".")[1]))["sub"])
    except (ValueError, KeyError, IndexError):
        raise HTTPException(401, "not a token") from None
    if not hmac.compare_digest(signed({"sub": name}), bearer.credentials):
        raise HTTPException(401, "not one of ours")
    return name


def currency() -> str:
    return "GBP"


@app.post("/token")
async def token(name: str) -> dict[str, str]:
    return {"token": signed({"sub": name})}


@app.get("/me")
async def me(name: Annotated[str, Depends(reader)]) -> dict[str, str]:
    return {"name": name}


@app.get("/books/{id}")
async def book(id: int, response: Response) -> Book:
    asked.append(id)
    if id == 3:
        raise OutOfPrint
    if id not in app.state.shelf:
        raise HTTPException(404, "no such book")
    response.headers["x-shelf"] = "A"
    return Book(id=id, title=app.state.shelf[id])


@app.get("/prices/{id}")
async def price(id: int, currency: Annotated[str, Depends(currency)]) -> dict[str, str | int]:
    return {"id": id, "currency": currency}


@app.post("/basket/{id}")
async def put(id: int, request: Request) -> list[int]:
    request.session["basket"] = [*request.session.get("basket", []), id]
    return list(request.session["basket"])


@app.get("/basket")
async def basket(request: Request) -> list[int]:
    return list(request.session.get("basket", []))


@app.get("/page/{id}", response_class=HTMLResponse)
async def page(id: int, request: Request) -> Response:
    return templates.TemplateResponse(request, "book.html", {"title": app.state.shelf[id]})


@app.get("/greeting")
async def greeting(request: Request) -> str:
    return str(request.state.greeting)


@app.websocket("/talk")
async def talk(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text.upper())


reviews = FastAPI(title="Reviews")


@reviews.get("/of/{id}", name="review")
async def review(id: int, request: Request) -> dict[str, str]:
    return {"self": str(request.url_for("review", id=id))}


app.mount("/reviews", reviews)
