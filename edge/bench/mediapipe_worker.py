"""MediaPipe Hands on one picture, in the interpreter that has it; started by `compare.py`, alone in its process.

It reads one line of JSON, {"width", "height"}, and the picture's RGB bytes; it answers with a line that
says whether it follows the hand. From then on a number N asks for N frames, and it answers what they took.
"""

import json
import os
import sys
import time


def main() -> None:
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # MediaPipe prints what it likes
    import mediapipe
    import numpy as np

    asked = json.loads(sys.stdin.buffer.readline())
    height, width = asked["height"], asked["width"]
    picture = np.frombuffer(sys.stdin.buffer.read(width * height * 3), np.uint8).reshape(height, width, 3)
    full = 1
    hands = mediapipe.solutions.hands.Hands(static_image_mode=False, max_num_hands=1, model_complexity=full)
    found = [hands.process(picture) for _ in range(20)]
    followed = all(one.multi_hand_landmarks for one in found[1:])
    score = found[-1].multi_handedness[0].classification[0].score if followed else 0.0
    print(json.dumps({"version": mediapipe.__version__, "followed": followed, "score": round(score, 3)}), file=answer)
    for line in sys.stdin.buffer:
        taken, cpu = [], []
        for _ in range(int(line)):
            begun, worked = time.perf_counter(), time.process_time()
            result = hands.process(picture)
            taken.append((time.perf_counter() - begun) * 1e3)
            cpu.append((time.process_time() - worked) * 1e3)
            if not result.multi_hand_landmarks:
                sys.exit("it lost the hand")
        print(json.dumps({"ms": taken, "cpu_ms": cpu}), file=answer)


if __name__ == "__main__":
    main()
