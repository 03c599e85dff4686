"""Who decides which instance a call goes to: the caller, from what it sees."""

from microos.router.middleware import Call, compose, middleware
from microos.router.policy import Breaker, LeastLoad, Policy, Random, Retry, RoundRobin

__all__ = [
    "Breaker",
    "Call",
    "LeastLoad",
    "Policy",
    "Random",
    "Retry",
    "RoundRobin",
    "compose",
    "middleware",
]
