"""The command `distill serve`: shortens texts over HTTP."""

from __future__ import annotations

import argparse
import functools
import ipaddress
import logging
import sys
from dataclasses import fields
from pathlib import Path

from distill.pruning.checks import BadArgument, whole
from distill.serving.settings import API_KEY_VARIABLE, Settings

EXAMPLES = f"""\
examples:
  distill serve --port 8000
      the shipped small model, on this machine only
  curl -s localhost:8000/compress_prompt -H 'Content-Type: application/json' \\
       -d '{{"context": ["A long text."], "rate": 0.5, "force_tokens": ["\\n"]}}'
  {API_KEY_VARIABLE}=secret distill serve --host 0.0.0.0 --target-tokenizer tiktoken:o200k_base
      for others too; they send the header X-API-Key: secret

  distill serve --upstream https://api.example.com/v1 --rate 0.5 --port 8001
      a proxy: point a client's base_url to http://localhost:8001/v1; results of tools become shorter, see --routes
  distill serve --model ./my-model --policy tuned/policy.json --port 8002
      an OpenAI-compatible server for that model under that policy ("none": the stock model)

GET /docs explains the API, GET /healthz says what runs, GET /metrics is for Prometheus; on the page /codec you type a
text and see what each token costs a language model. One request is worked on at a time; --queue says how many may
wait, and more are told to come back (503). A client that leaves, or waits longer than --timeout, frees its place. A
client that sends or reads too slowly is disconnected.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `distill serve` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default 8000)")
    parser.add_argument("--model", metavar="NAME", help="scores the texts; default: the shipped small model")
    parser.add_argument("--upstream", metavar="URL", help="be a proxy for this OpenAI-compatible server (up to /v1)")
    parser.add_argument("--rate", type=float, help="share of the tokens that the proxy keeps of results of tools")
    parser.add_argument("--routes", metavar="FILE", help="JSON: rate, roles and query_aware by route of the proxy")
    parser.add_argument(
        "--prune-timeout", type=float, default=2.0, metavar="S", help="then the proxy passes on as it came (default 2)"
    )
    parser.add_argument(
        "--stall-timeout", type=float, default=120.0, metavar="S", help="silence of the upstream (default 120)"
    )
    parser.add_argument("--policy", metavar="FILE", help="answer with --model under this policy, or under none")
    parser.add_argument("--name", help="what clients call that model (default: the last part of its folder)")
    parser.add_argument("--scorer", default="auto", help="as in distill prune (default auto)")
    parser.add_argument("--ner", default="auto", metavar="NAME", help="names: auto, capitals, none, or a model")
    parser.add_argument(
        "--target-tokenizer", metavar="NAME", help="counts the budget: a tokenizer, or tiktoken:ENCODING"
    )
    parser.add_argument("--device", default="cpu", help="where the model runs (default cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of the model; default: PyTorch's choice")
    parser.add_argument("--queue", type=int, default=64, help="requests that may wait or run (default 64)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds a request may take (default 120)")
    parser.add_argument(
        "--max-body",
        type=int,
        metavar="BYTES",
        help="largest request (default 128 KiB if a model runs on a CPU, else 1 MiB: what --timeout is enough for)",
    )
    parser.add_argument("--connections", type=int, default=500, help="connections open at once (default 500)")
    parser.add_argument(
        "--header-timeout", type=float, default=5.0, metavar="S", help="seconds for the headers to come (default 5)"
    )
    parser.add_argument(
        "--body-timeout", type=float, default=15.0, metavar="S", help="seconds for the body to come (default 15)"
    )
    parser.add_argument(
        "--read-timeout", type=float, default=30.0, metavar="S", help="seconds for the answer to be read (default 30)"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(args: argparse.Namespace) -> int:
    """Serves until it is stopped.

    Raises:
        ValueError: an argument that is not allowed, by name, or the extra `serve` is not installed.
    """
    if args.upstream is not None and args.policy is not None:
        raise BadArgument("--policy", "a policy beside --upstream", "one of them")
    names = [field.name for field in fields(Settings) if field.name != "api_key"]
    settings = Settings(**{name: getattr(args, name) for name in names})
    whole("--port", args.port, 1, 65535)
    if args.threads is not None:
        whole("--threads", args.threads, 1, 1024)
    try:
        import uvicorn

        from distill.serving.app import create_app
        from distill.serving.connections import server_options
    except ImportError as error:
        got = f"an installation without the package {error.name}"
        raise BadArgument("serve", got, "those with the extra: pip install 'distill-llm[serve]'") from None
    import torch

    from distill.pruning import Distill
    from distill.serving.settings import ProxySettings

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if settings.api_key is None and not _is_loopback(args.host):
        print(
            f"distill serve: anyone who reaches {args.host} can use this server; set {API_KEY_VARIABLE}",
            file=sys.stderr,
        )
    if args.policy is not None:
        return _serve_model(args, settings)
    load = functools.partial(
        Distill,
        args.model,
        args.device,
        scorer=args.scorer,
        ner=None if args.ner == "none" else args.ner,
        target_tokenizer=args.target_tokenizer,
    )
    # loaded before the server starts, so that a bad argument gives a message and not a traceback
    if args.upstream is not None:
        from distill.serving.proxy import create_proxy
        from distill.serving.routes import read_routes

        proxy = ProxySettings(
            args.upstream,
            read_routes(args.routes, args.rate),
            prune_timeout=args.prune_timeout,
            stall_timeout=args.stall_timeout,
            queue=args.queue,
        )
        made = load()
        # addresses may hold keys of clients, so requests are not logged
        logging.getLogger("httpx").setLevel(logging.WARNING)
        options = {**server_options(settings), "access_log": False}
        uvicorn.run(create_proxy(lambda: made, proxy), host=args.host, port=args.port, log_level="info", **options)
        return 0
    distill = load()
    app = create_app(lambda: distill, settings)
    uvicorn.run(app, host=args.host, port=args.port, log_level="info", **server_options(settings))
    return 0


def _serve_model(args: argparse.Namespace, settings: Settings) -> int:
    import torch
    import uvicorn
    from transformers import AutoTokenizer

    from distill.models import load
    from distill.patches.grammar import read_policy
    from distill.serving.completions import Engine, create_model_app
    from distill.serving.connections import server_options

    if args.model is None:
        raise BadArgument("--model", "None beside --policy", "folders and names of causal LMs")
    policy = None if args.policy == "none" else read_policy(args.policy)
    dtype = torch.float32 if args.device == "cpu" else "auto"
    model = load(args.model, policy=policy, dtype=dtype).to(args.device)
    engine = Engine(model, AutoTokenizer.from_pretrained(args.model), args.name or Path(args.model).name)
    app = create_model_app(lambda: engine, settings)
    uvicorn.run(app, host=args.host, port=args.port, log_level="info", **server_options(settings))
    return 0
