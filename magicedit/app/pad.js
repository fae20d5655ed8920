// A field in which a dot stands for two angles. Runs once in its gr.HTML, which gives `element`, `props`
// and `watch`. props.value: {x, y} in degrees, right and up; props.reach: at the edges.

const pad = element.querySelector('.me-pad');
const dot = pad.querySelector('i');
let held = null; // the last value while the pointer is down

function show({ x, y }) {
    dot.style.left = `${50 + (50 * x) / props.reach}%`;
    dot.style.top = `${50 - (50 * y) / props.reach}%`;
}

function tell(event, ends) {
    if (event.type !== 'pointercancel') { // that has no place
        const box = pad.getBoundingClientRect();
        const share = (value, size) => Math.min(Math.max(value / size, 0), 1);
        held = {
            x: Math.round(props.reach * (2 * share(event.clientX - box.left, box.width) - 1)),
            y: Math.round(props.reach * (1 - 2 * share(event.clientY - box.top, box.height))),
        };
    }
    show(held);
    document.dispatchEvent(new CustomEvent('me-drag', { detail: { of: props.kind, ...held, ends } }));
    if (ends) held = null;
}

pad.addEventListener('pointerdown', event => {
    if (event.button !== 0 || held || pad.closest('.me-off')) return;
    pad.setPointerCapture(event.pointerId);
    tell(event, false);
});
pad.addEventListener('pointermove', event => held && tell(event, false));
for (const name of ['pointerup', 'pointercancel']) pad.addEventListener(name, event => held && tell(event, true));
watch('value', () => held || show(props.value));
show(props.value);
