"""Names, tree and limits of the hand's skeleton: 16 articulated joints, 21 published ones, 26 degrees of freedom."""

from __future__ import annotations

import numpy as np

FINGERS = ("thumb", "index", "middle", "ring", "little")

# 21 published joints, MediaPipe's order.
JOINT_NAMES = (
    "wrist",
    "thumb_cmc", "thumb_mcp", "thumb_ip", "thumb_tip",
    *(f"{f}_{j}" for f in FINGERS[1:] for j in ("mcp", "pip", "dip", "tip")),
)  # fmt: skip
JOINT_PARENTS = (-1, *(p for f in range(5) for p in (0, 1 + 4 * f, 2 + 4 * f, 3 + 4 * f)))
BONE_STARTS = np.array(JOINT_PARENTS[1:])  # of the bone that ends in each joint but the wrist
TIPS = tuple(4 + 4 * f for f in range(5))
PALM = [0, 5, 9, 13, 17]  # wrist and knuckles
ROOTS = [0, 1, 5, 9, 13, 17]  # the wrist and where the fingers begin, the thumb too

# 16 rigid parts (bones): the palm and three a finger. Part p begins at joint PART_JOINTS[p].
PART_JOINTS = (0, *(1 + 4 * f + k for f in range(5) for k in range(3)))
PART_PARENTS = (-1, *(p for f in range(5) for p in (0, 1 + 3 * f, 2 + 3 * f)))
PARENT_OR_PALM = [max(p, 0) for p in PART_PARENTS]  # to index with: the palm is its own parent
# alpha = [palm, thumb, index, middle, ring, little]: which scale a part has (DeepHPS, section 4.1).
PART_SCALES = (0, *(1 + f for f in range(5) for _ in range(3)))

# The 20 joint angles of theta[6:]: name, part, axis, least and greatest angle in degrees. Zero is the flat hand;
# flexion is positive towards the palm, abduction positive towards the thumb.
# Limits after the usual active ranges of motion (AAOS), a little wider where the template's frames differ.
_DOF = (
    ("thumb_cmc_flex", 1, "flex", -20, 45),
    ("thumb_cmc_abd", 1, "abd", -25, 30),
    ("thumb_mcp_flex", 2, "flex", -15, 60),
    ("thumb_ip_flex", 3, "flex", -20, 85),
    *(
        dof
        for f, name in enumerate(FINGERS[1:], 1)
        for dof in (
            (f"{name}_mcp_flex", 1 + 3 * f, "flex", -25, 95),
            (f"{name}_mcp_abd", 1 + 3 * f, "abd", -22, 22),
            (f"{name}_pip_flex", 2 + 3 * f, "flex", -8, 112),
            (f"{name}_dip_flex", 3 + 3 * f, "flex", -12, 80),
        )
    ),
)
ANGLE_NAMES = tuple(d[0] for d in _DOF)
ANGLE_PARTS = np.array([d[1] for d in _DOF])
IS_FLEXION = np.array([d[2] == "flex" for d in _DOF])
ANGLE_LIMITS_RAD = np.radians([d[3:5] for d in _DOF])  # (20, 2)
DOF_NAMES = ("wrist_x_m", "wrist_y_m", "wrist_z_m", "wrist_rx", "wrist_ry", "wrist_rz", *ANGLE_NAMES)

# The thumb's saddle joint rolls as it flexes; one degree of freedom drives both.
THUMB_TWIST_PER_FLEX = 0.5

# Range of alpha and beta (facts of DINED cover hands of about 150 to 215 mm).
ALPHA_RANGE = (0.8, 1.25)
BETA_RANGE = (-1.0, 1.0)
