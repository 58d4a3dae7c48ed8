"""Which pools a server has: the one that its own options describe, and behind it those of `pools`.

Each pool has a configuration of its own, complete: the server's with what its table says in its place. Any
process may ask; what only the master can check is settings.prepare's affair.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from gunicorn.config import Config
from gunicorn.errors import ConfigError as GunicornConfigError

from poolparty.errors import ConfigError
from poolparty.pool.routing import Route
from poolparty.settings import DEFAULT_POOL, POOLS_OF_GUNICORN, Options, PoolTable, complaint


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """A pool as it is configured. `options` are complete, but only those of a pool are meant; `cfg` likewise
    is for what gunicorn's settings say of its children."""

    name: str
    routes: tuple[Route, ...]
    options: Options
    cfg: Any


def pool_configs(cfg: Config) -> tuple[PoolConfig, ...]:
    """All pools, the default one first. ConfigError: one of them, or all together, cannot be served."""
    options = Options.from_cfg(cfg)
    default = PoolConfig(DEFAULT_POOL, (), options, cfg)
    configs = (default, *(_configured(table, cfg) for table in options.pools))
    _check_total(configs, options)
    return configs


def _configured(table: PoolTable, cfg: Config) -> PoolConfig:
    own = _with(cfg, table)
    try:
        return PoolConfig(table.name, table.routes, Options.from_cfg(own), own)
    except ConfigError as error:
        raise of_pool(table.name, error) from None


def of_pool(name: str, error: ConfigError) -> ConfigError:
    """A complaint about an option, which is that of a pool."""
    return error if name == DEFAULT_POOL else ConfigError(f'pools["{name}"]: {error}')


def _with(cfg: Config, table: PoolTable) -> Config:
    """The server's configuration with a pool's own settings in it; they share the others."""
    own: Config = object.__new__(type(cfg))
    own.__dict__.update(cfg.__dict__)
    own.__dict__["settings"] = settings = dict(cfg.settings)
    for name, value in table.settings.items():
        settings[name] = copy.copy(cfg.settings[name])
        if name == "raw_env" and isinstance(value, (list, tuple)):
            value = [*cfg.settings[name].get(), *value]
        try:
            settings[name].set(value)
        except (TypeError, ValueError, GunicornConfigError) as error:
            assert name in POOLS_OF_GUNICORN  # ours keep what they are given
            raise of_pool(table.name, ConfigError(complaint(name, value, str(error).rstrip(".")))) from None
    return own


def _check_total(configs: tuple[PoolConfig, ...], options: Options) -> None:
    least = sum(config.options.min_pool_size for config in configs)
    if 0 < options.total_pool_size < max(least, len(configs)):
        wrong = f"it has no room for {len(configs)} pools, which keep {least} children; raise it"
        raise ConfigError(complaint("total_pool_size", options.total_pool_size, wrong))
