"""models/pca: principal component analysis with T2 and Q in one combined index. Nothing is trained."""

import numpy as np
from onnx import TensorProto, helper

from . import onnx_graph
from .folder import model_files
from .golden import rounded

NAME = "pca"
VERSION = "1.0.0"
STEPS = 8
COMPONENTS = 16
# Kaiser's rule: a component is principal if it carries at least as much variance as one channel alone.
PRINCIPAL = 1.0
# What the residual space is taken to carry at least, for each channel, as a share of the channel's variance. Channels
# that calibration saw move as one would otherwise raise an alarm at their last digit.
RESIDUAL_FLOOR = 1e-3
# Keeps the contributions a division by something where every deviation is exactly zero.
TINY = 1e-12


def graph() -> bytes:
    nodes = [
        # What is judged: the window's mean, in standard deviations from the machine's normal.
        helper.make_node("ReduceMean", ["window"], ["window_mean"], axes=[1], keepdims=0),  # [1,C]
        helper.make_node("Sub", ["window_mean", "mean"], ["window_offset"]),
        helper.make_node("Div", ["window_offset", "scale"], ["z"]),  # [1,C]
        # Which components are principal: 1 or 0. Where the machine has fewer channels than K, columns are zero.
        helper.make_node("Mul", ["loadings", "loadings"], ["loadings_squared"]),  # [C,K]
        helper.make_node("ReduceSum", ["loadings_squared", "axis_0"], ["length"], keepdims=0),  # [K]
        helper.make_node("Greater", ["length", "half"], ["is_there"]),
        helper.make_node("GreaterOrEqual", ["eigenvalues", "least_principal"], ["is_large"]),
        helper.make_node("And", ["is_there", "is_large"], ["is_principal"]),
        helper.make_node("Cast", ["is_principal"], ["principal"], to=TensorProto.FLOAT),  # [K]
        helper.make_node("ReduceSum", ["principal", "axis_0"], ["principal_counted"], keepdims=1),  # [1]
        helper.make_node("Max", ["principal_counted", "one"], ["principal_count"]),
        # What the residual space carries in health: the trace (a channel each) without the principal variances.
        helper.make_node("Shape", ["mean"], ["channels_counted"]),
        helper.make_node("Cast", ["channels_counted"], ["channels"], to=TensorProto.FLOAT),  # [1]
        helper.make_node("Mul", ["principal", "eigenvalues"], ["principal_variances"]),
        helper.make_node("ReduceSum", ["principal_variances", "axis_0"], ["principal_variance"], keepdims=1),
        helper.make_node("Sub", ["channels", "principal_variance"], ["variance_left"]),
        helper.make_node("Mul", ["channels", "residual_floor"], ["least_variance"]),
        helper.make_node("Max", ["variance_left", "least_variance"], ["residual_variance"]),  # [1]
        # T2 over its number of components, Q over its expectation: each is one in health.
        helper.make_node("MatMul", ["z", "loadings"], ["every_coordinate"]),  # [1,K]
        helper.make_node("Mul", ["every_coordinate", "principal"], ["coordinate"]),
        helper.make_node("Mul", ["eigenvalues", "principal_count"], ["coordinate_spread"]),
        helper.make_node("Div", ["principal", "coordinate_spread"], ["coordinate_weight"]),  # [K]
        helper.make_node("Mul", ["coordinate", "coordinate_weight"], ["weighted_coordinate"]),  # [1,K]
        helper.make_node("Mul", ["coordinate", "weighted_coordinate"], ["t2_terms"]),
        helper.make_node("ReduceSum", ["t2_terms", "axis_1"], ["t2"], keepdims=0),  # [1]
        helper.make_node("Transpose", ["loadings"], ["loadings_transposed"], perm=[1, 0]),  # [K,C]
        helper.make_node("MatMul", ["coordinate", "loadings_transposed"], ["expected"]),  # [1,C]
        helper.make_node("Sub", ["z", "expected"], ["residual"]),
        helper.make_node("Div", ["residual", "residual_variance"], ["weighted_residual"]),
        helper.make_node("Mul", ["residual", "weighted_residual"], ["q_terms"]),
        helper.make_node("ReduceSum", ["q_terms", "axis_1"], ["q"], keepdims=0),  # [1]
        helper.make_node("Add", ["t2", "q"], ["index"]),
        helper.make_node("Mul", ["index", "half"], ["mean_index"]),
        helper.make_node("Sqrt", ["mean_index"], ["score"]),
        # Reconstruction-based contributions: by how much the index falls if this channel alone is put right. With
        # F the index's matrix, index = z F z', it is (F z)_c^2 / F_cc.
        helper.make_node("MatMul", ["weighted_coordinate", "loadings_transposed"], ["t2_gradient"]),  # [1,C]
        helper.make_node("Add", ["t2_gradient", "weighted_residual"], ["gradient"]),
        helper.make_node("Mul", ["gradient", "gradient"], ["gradient_squared"]),
        helper.make_node("Unsqueeze", ["coordinate_weight", "axis_1"], ["coordinate_weight_column"]),  # [K,1]
        helper.make_node("MatMul", ["loadings_squared", "coordinate_weight_column"], ["t2_diagonal"]),  # [C,1]
        helper.make_node("Unsqueeze", ["principal", "axis_1"], ["principal_column"]),
        helper.make_node("MatMul", ["loadings_squared", "principal_column"], ["share_explained"]),  # [C,1]
        helper.make_node("Sub", ["one", "share_explained"], ["share_left"]),
        helper.make_node("Max", ["share_left", "zero"], ["share_residual"]),
        helper.make_node("Div", ["share_residual", "residual_variance"], ["q_diagonal"]),
        helper.make_node("Add", ["t2_diagonal", "q_diagonal"], ["diagonal_column"]),
        helper.make_node("Transpose", ["diagonal_column"], ["diagonal_row"], perm=[1, 0]),  # [1,C]
        helper.make_node("Max", ["diagonal_row", "tiny"], ["diagonal"]),
        helper.make_node("Div", ["gradient_squared", "diagonal"], ["reconstructed"]),
        helper.make_node("Add", ["reconstructed", "tiny"], ["reconstructed_positive"]),
        helper.make_node("ReduceSum", ["reconstructed_positive", "axis_1"], ["reconstructed_total"], keepdims=1),
        helper.make_node("Div", ["reconstructed_positive", "reconstructed_total"], ["contribution"]),
    ]
    return onnx_graph.model(
        NAME,
        nodes,
        {
            "window": [1, STEPS, "C"],
            "mean": ["C"],
            "scale": ["C"],
            "loadings": ["C", COMPONENTS],
            "eigenvalues": [COMPONENTS],
        },
        {"score": [1], "contribution": [1, "C"]},
        onnx_graph.constants(
            {
                "axis_0": [0],
                "axis_1": [1],
                "zero": 0.0,
                "half": 0.5,
                "one": 1.0,
                "least_principal": PRINCIPAL,
                "residual_floor": RESIDUAL_FLOOR,
                "tiny": TINY,
            }
        ),
    )


def basis(channels: int) -> np.ndarray:
    """Orthonormal columns [C,K], the cosines of the discrete cosine transform; zero columns where C < K. Written down
    rather than found by an eigensolver, whose signs and last digits depend on the processor."""
    loadings = np.zeros((channels, COMPONENTS))
    place = (np.arange(channels) + 0.5) / channels
    for component in range(min(channels, COMPONENTS)):
        length = np.sqrt((1.0 if component == 0 else 2.0) / channels)
        loadings[:, component] = length * np.cos(np.pi * component * place)
    return loadings


def cases():
    """Machines of one, eight and twenty-four channels (fewer and more than K), calm and disturbed."""
    for name, channels, disturbed in [
        ("one channel", 1, 0),
        ("calm", 8, None),
        ("one sensor off", 8, 5),
        ("more channels than components", 24, 17),
    ]:
        rng = np.random.default_rng(channels)
        loadings = basis(channels)
        known = min(channels, COMPONENTS)
        # Falling variances that add up to the number of channels, as those of standardised channels do.
        variances = 0.6 ** np.arange(channels)
        variances *= channels / variances.sum()
        eigenvalues = np.ones(COMPONENTS)
        eigenvalues[:known] = variances[:known]
        mean, scale = rng.uniform(1.0, 50.0, channels), rng.uniform(0.5, 2.0, channels)
        z = rng.normal(size=(STEPS, known)) * np.sqrt(variances[:known]) @ loadings[:, :known].T
        if disturbed is not None:
            z[:, disturbed] += 5.0
        yield (
            name,
            {
                "window": rounded(mean + scale * z, 3)[None],
                "mean": rounded(mean, 3),
                "scale": rounded(scale, 3),
                "loadings": rounded(loadings, 5),
                "eigenvalues": rounded(eigenvalues, 5),
            },
        )


def made(_committed) -> dict:
    """The folder's files by name."""
    about = f"""\
# What the graph is given: T steps of C channels; the K directions in which calibration saw the channels vary together,
# and how much. Where C < K the columns beyond C are zero and their eigenvalues 1.
steps = {STEPS}
components = {COMPONENTS}
inputs = ["window", "mean", "scale", "loadings", "eigenvalues"]
"""
    return model_files(graph(), NAME, VERSION, cases(), about)
