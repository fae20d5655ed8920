// Opens workflows that were saved with earlier nodes: no value moves to another input, and none is lost.

import { app } from '../../scripts/app.js';

const AFTER_SEED = ['fixed', 'increment', 'decrement', 'randomize']; // ComfyUI put one behind each seed
const isOwn = (value, at, values) => !AFTER_SEED.includes(value) || typeof values[at - 1] !== 'number';

app.registerExtension({
    name: 'magicedit.older_workflows',
    beforeConfigureGraph({ nodes, definitions }) {
        const inside = (definitions?.subgraphs ?? []).flatMap(graph => graph.nodes);
        for (const node of [...nodes, ...inside])
            if (node.type.startsWith('MagicEdit') && Array.isArray(node.widgets_values))
                node.widgets_values = node.widgets_values.filter(isOwn);
    },
    loadedGraphNode(node) {
        const face = node.type.startsWith('MagicEdit') && node.widgets?.find(({ name }) => name === 'face');
        // Numbers counted faces from 0; since then it is text, in which #1 is the largest
        if (face && Number.isInteger(face.value)) face.value = `#${face.value + 1}`;
    },
});
