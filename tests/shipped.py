"""The networks of the shipped models, compiled; without their calibration."""

from models.engines import Engine, compile_network
from models.passport import find_model, read_passport, read_weights
from sesmo_live.records import Precision

MODELS = ("demo-deep-sesmo", "demo-compact")


def shipped(name: str, precision: Precision = "fp32") -> Engine:
    folder = find_model(name)
    passport = read_passport(folder)
    return compile_network(passport.network, 50, read_weights(folder, passport), precision=precision)
