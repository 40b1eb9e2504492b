"""`mammofed server nginx HOME`: thin, the work is in `nginx`; mounted by `server.cli`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("home", type=click.Path(file_okay=False, path_type=Path))
@click.option("--listen", default="0.0.0.0", show_default=True, help="Address of nginx.")  # noqa: S104
@click.option("--port", default=8443, show_default=True, help="Door for enrolled sites.")
@click.option("--enrol-port", default=8444, show_default=True, help="Door for invited sites.")
def nginx(home: Path, listen: str, port: int, enrol_port: int) -> None:
    """Write a configuration for nginx in the gateway's place; the daemon keeps its lists up to date.

    Example:  mammofed server nginx coordinator --port 8443
    """
    from server.deploy.home import CoordinatorHome
    from server.deploy.nginx import NginxFront

    path = NginxFront(CoordinatorHome.open(home.resolve())).write(listen=listen, port=port, enrol_port=enrol_port)
    click.echo(f"Written  {path}\nNext     nginx -t -c {path} && nginx -c {path}   (needs ngx_stream_module)")
